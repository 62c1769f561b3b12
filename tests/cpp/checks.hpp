// What the C++ tests count and print: one line for each check.
#pragma once

#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>

inline int failed = 0, passed = 0;

inline void check(bool holds, const std::string& what) {
  std::printf("%s  %s\n", holds ? "ok  " : "FAIL", what.c_str());
  ++(holds ? passed : failed);
}

inline void refused(const std::function<void()>& call, const std::string& word) {
  try {
    call();
    check(false, "refused: " + word);
  } catch (const std::invalid_argument& error) {
    check(std::string(error.what()).find(word) != std::string::npos,
          "refused: " + std::string(error.what()));
  }
}
