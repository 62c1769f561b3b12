"""Racing against all-exact ablation on ResNet-20/CIFAR: decisions, coverage, widths.

All effects are computed exactly once (kept in --cache); races then look them up, so that many
seeds can be tried, and pay in forward-equivalents what they would have paid. Run from the
repository: ``CAUSALPRUNE_DATA=... python benchmarks/end_to_end/racing.py --cache outputs.npy``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from resnet20_cifar import RESULTS, images, provenance, resnet20
from torch import Tensor, nn

from causalprune.scoring.ablation import ExactEffects
from causalprune.scoring.data import Batch
from causalprune.scoring.driver import open_job
from causalprune.scoring.intervals import student_t_quantile
from causalprune.scoring.methods import Job
from causalprune.scoring.outcomes import OUTCOMES, evaluate
from causalprune.scoring.racing import Race, RaceOptions
from causalprune.scoring.surrogates import Surrogate, surrogate_of

OUTCOME_SURROGATES = {
    "loss": ("log_odds", "path", "taylor", "logit", "none"),
    "margin": ("path", "none"),
}
STAGES = {"early": "layer1", "middle": "layer2", "late": "layer3"}
SEPARATED = 0.1  # relative distance of the true importance from the boundary
RATIO = 0.5


def exact_outputs(job: Job, batch: Batch, cache: Path | None) -> tuple[Tensor, Tensor]:
    """Logits of the whole network [N, K] and without each unit [U, N, K]."""
    if cache is not None and cache.exists():
        found = torch.from_numpy(np.load(cache))
        return found[0], found[1:]
    exact, parts = ExactEffects(job), []
    with torch.no_grad():
        for start in range(0, len(batch.inputs), 64):
            plain = exact.interventions.observe(batch.inputs[start : start + 64])
            units = [exact.interventions.remove(g.name, range(g.n_units)) for g in job.graph.groups]
            parts.append(torch.cat([plain[None], *units]))
            print(f"exact: {start + len(plain)} images", flush=True)
    found = torch.cat(parts, 1)
    if cache is not None:
        np.save(cache, found.numpy())
    return found[0], found[1:]


@dataclass
class Recorded:
    """Exact effects looked up instead of computed; the images are known by their bytes."""

    effects_of: Tensor
    rows: dict[bytes, int]
    columns: dict[str, slice]
    interventions: object
    present: Tensor

    def observe(self, batch: Batch) -> None:
        self.present = torch.tensor([self.rows[i.numpy().tobytes()] for i in batch.inputs])

    def effects(self, group: str, units: Sequence[int]) -> Tensor:
        return self.effects_of[:, self.columns[group]][self.present][:, list(units)]


def looked_up(values: Tensor, rows: dict[bytes, int], part: Batch) -> Tensor:
    return values[[rows[image.numpy().tobytes()] for image in part.inputs]]


def columns_of(job: Job) -> dict[str, slice]:
    found, start = {}, 0
    for group in job.graph.groups:
        found[group.name] = slice(start, start + group.n_units)
        start += group.n_units
    return found


def kept(importance: Tensor) -> Tensor:
    """Units above the boundary, bool."""
    result = torch.zeros(len(importance), dtype=torch.bool)
    result[importance.argsort(stable=True)[round(RATIO * len(importance)) :]] = True
    return result


@dataclass(frozen=True)
class Truth:
    effect: Tensor
    importance: Tensor
    keep: Tensor
    separated: Tensor

    @classmethod
    def of(cls, effects: Tensor) -> Truth:
        importance = effects.abs().mean(0)
        ordered = importance.sort().values
        place = round(RATIO * len(ordered))
        boundary = (ordered[place - 1] + ordered[place]) / 2
        far = (importance - boundary).abs() > SEPARATED * boundary
        return cls(effects.mean(0), importance, kept(importance), far)

    def agreement(self, importance: Tensor) -> str:
        right = kept(importance) == self.keep
        return f"{right.double().mean():.1%} / {right[self.separated].double().mean():.1%}"


def correlations(exact: Tensor, cheap: Tensor, columns: dict[str, slice]) -> str:
    """Per-image correlation of signed effects, mean over the units of each stage."""
    found = []
    for layer in STAGES.values():
        names = [n for n in columns if n.startswith(layer) and n.endswith("conv1")]
        e, s = (torch.cat([m[:, columns[n]] for n in names], 1) for m in (exact, cheap))
        e, s = e - e.mean(0), s - s.mean(0)
        r = (e * s).sum(0) / (e.square().sum(0) * s.square().sum(0)).sqrt()
        found.append(f"{r[r.isfinite()].mean():.2f}")
    return " / ".join(found)


def races(
    job: Job, exact: Recorded, cheap: Surrogate | None, truth: Truth, budget: float, seeds: int
) -> str:
    """One row of the table: means over seeds."""
    rows = []
    for seed in range(seeds):
        options = RaceOptions(ratio=RATIO, population="images")
        race = Race(replace(job, budget=budget, seed=seed), options, exact, cheap)  # type: ignore[arg-type]
        race.run()
        units = race.result().units
        names = list(exact.columns)
        n, low, high = (
            torch.cat([getattr(units[g], f) for g in names]) for f in ("n", "low", "high")
        )
        importance = torch.cat([units[g].importance for g in names])
        right = kept(importance) == truth.keep
        covered = (low <= truth.effect + 1e-12) & (truth.effect <= high + 1e-12)
        half, n_images = (high - low) / 2, len(exact.effects_of)
        level = 1 - (1 - job.confidence) / race._looks
        t = torch.tensor([student_t_quantile((1 + level) / 2, int(k) - 1) for k in n.clamp_min(2)])
        plain = t * exact.effects_of.std(0) * (1 / n - 1 / n_images).clamp_min(0).sqrt()
        sampled = (n < n_images) & (plain > 0)
        closed = race._verdict != 0
        wrong = closed & ((race._verdict == 1) != truth.keep)
        rows.append(
            [
                race._spent,
                float(right.double().mean()),
                float(right[truth.separated].double().mean()),
                float(closed.double().mean()),
                float(wrong.sum() / closed.sum().clamp_min(1)),
                float(covered.double().mean()),
                float((half / plain)[sampled].median()),
                float(n.double().median()),
            ]
        )
    mean = np.array(rows).mean(0)
    spread = np.array(rows).std(0)
    if mean[7] == 0:
        return f"{mean[0]:.0f} | {mean[1]:.1%} | {mean[2]:.1%} | 0% | | no exact effect paid | | 0"
    return (
        f"{mean[0]:.0f} | {mean[1]:.1%} ± {spread[1]:.1%} | {mean[2]:.1%} | {mean[3]:.0%} | "
        f"{mean[4]:.1%} | {mean[5]:.1%} | {mean[6]:.2f} | {mean[7]:.0f}"
    )


def subsampling(exact: Tensor, truth: Truth, n: int, seeds: int) -> str:
    """All units on n images at random, no surrogate, no race."""
    all_units, separated = [], []
    for seed in range(seeds):
        chosen = torch.randperm(len(exact), generator=torch.Generator().manual_seed(seed))[:n]
        right = kept(exact[chosen].abs().mean(0)) == truth.keep
        all_units.append(float(right.double().mean()))
        separated.append(float(right[truth.separated].double().mean()))
    return f"{np.mean(all_units):.1%} ± {np.std(all_units):.1%} | {np.mean(separated):.1%}"


def report(model: nn.Module, batch: Batch, arguments: argparse.Namespace) -> str:
    lines = [
        "# Racing to the keep/remove boundary: ResNet-20, CIFAR-10",
        "",
        f"{len(batch.inputs)} images of the exact subset's training part, all "
        'convolution filters (`units="filters"`), ratio 0.5, importance = mean absolute change of '
        "the outcome. Truth: exact ablation of every unit on every image. Effects are looked up "
        f"in one exact run; {arguments.seeds} seeds a row (mean ± standard deviation over them). "
        "The budget is a fraction of what all-exact ablation spends in suffix replay, so the "
        "factor is beside the saving of the replay itself.",
        "",
        "Agreement: the share of units on the side of the boundary where the truth has them; units "
        f"are separated whose true importance is more than {SEPARATED:.0%} away from it. Decided "
        "units left the race before the budget was spent; the others go by their estimate. "
        "Coverage: of the mean effect over these images, by intervals that a race reports (95 % "
        "after Bonferroni over its looks); width: beside Student's t on the same number of images "
        "at the same level.",
        "",
    ]
    job_of = {
        "model": model, "data": (batch.inputs, batch.targets), "method": "ablation",
        "units": "filters", "options": {}, "batch_size": len(batch.inputs),
    }  # fmt: skip
    with open_job(**job_of) as (_, job):
        plain, without = exact_outputs(job, batch, arguments.cache)
        costs = ExactEffects(job).interventions
        whole = len(plain) * (1 + sum(costs.cost(g.name) * g.n_units for g in job.graph.groups))
        columns = columns_of(job)
        rows = {image.numpy().tobytes(): k for k, image in enumerate(batch.inputs)}
        lines.append(
            f"All-exact: {whole:.0f} forward-equivalents ({job.n_units} units; full forwards "
            f"without replay would be {len(plain) * (job.n_units + 1)})."
        )
        for name, surrogates in OUTCOME_SURROGATES.items():
            outcome = OUTCOMES[name]
            before = evaluate(outcome, plain, batch.targets, "")
            effects = torch.stack(
                [evaluate(outcome, w, batch.targets, "") - before for w in without], 1
            )
            truth, recorded = (
                Truth.of(effects),
                Recorded(effects, rows, columns, costs, torch.zeros(0)),
            )
            lines += outcome_report(
                replace(job, outcome=outcome), batch, recorded, truth, surrogates, whole, arguments
            )
    return "\n".join(lines) + "\n"


def outcome_report(
    job: Job,
    batch: Batch,
    exact: Recorded,
    truth: Truth,
    surrogates: Sequence[str],
    whole: float,
    arguments: argparse.Namespace,
) -> list[str]:
    share = float(truth.separated.double().mean())
    lines = [
        "",
        f"## Outcome `{job.outcome.name}`",
        "",
        f"{share:.0%} of the units are separated: more than {SEPARATED:.0%} away from the "
        "boundary's importance.",
        "",
        "| surrogate | correlation with exact, early / middle / late block | agreement of the "
        "surrogate alone, all / separated |",
        "|---|---|---|",
    ]
    cheap: dict[str, Surrogate | None] = {"none": None}
    for name in surrogates:
        found = surrogate_of(name, job)
        if found is None:
            continue
        started = time.perf_counter()
        values = torch.cat(
            [
                found.effects(Batch(batch.inputs[k : k + 64], batch.targets[k : k + 64]))
                for k in range(0, len(batch.inputs), 64)
            ]
        )
        print(f"{job.outcome.name} {name}: {time.perf_counter() - started:.1f} s", flush=True)
        cheap[name] = replace(
            found,
            effects=partial(looked_up, values, exact.rows),
        )
        lines.append(
            f"| {name} | {correlations(exact.effects_of, values, exact.columns)} | "
            f"{truth.agreement(values.abs().mean(0))} |"
        )
    lines += [
        "",
        "| budget | surrogate | forward-equivalents spent | agreement, all units | agreement, "
        "separated | decided | wrong among decided | coverage of effects | width / plain "
        "subsampling at the same n | median n |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for factor in arguments.factors:
        for name in surrogates:
            surrogate = cheap[name]
            head = f"| 1/{factor:g} | {name} | "
            spent_first = (
                0 if surrogate is None else surrogate.forwards_per_image * len(batch.inputs)
            )
            if whole / factor < spent_first:
                lines.append(
                    head + f"does not pay for the surrogate ({spent_first:.0f}) |" + " |" * 7
                )
                continue
            row = races(job, exact, surrogate, truth, whole / factor, arguments.seeds)
            lines.append(head + row + " |")
            print(lines[-1], flush=True)
        n = int(whole / factor / (whole / len(batch.inputs)))
        lines.append(
            f"| 1/{factor:g} | no race, {n} random images | {whole / factor:.0f} | "
            f"{subsampling(exact.effects_of, truth, n, arguments.seeds)} | | | | 1 | {n} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--factors", type=float, nargs="*", default=[5, 10, 20])
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "racing.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = report(resnet20(), Batch(*images(arguments.images)), arguments)
    text += (
        f"\n{provenance()} `python benchmarks/end_to_end/racing.py`; forward-equivalents do not "
        "depend on the machine.\n"
    )
    arguments.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
