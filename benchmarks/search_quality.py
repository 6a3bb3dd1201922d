"""How good the search of `tune` is: against random search, on functions whose best value is known.

python benchmarks/search_quality.py --seeds 40 --output FILE                    # about half an hour
python benchmarks/search_quality.py --seeds 2 --problems branin                 # a look
python benchmarks/search_quality.py --searcher optuna --seeds 20 --trials 16    # Optuna's Gaussian process instead

Every problem is searched with the searcher of `tune` (edgequant_tune/searcher), one trial at a time and 8 at a time,
and at random, with the same number of trials. Trials that run at a time take about equally long (within 5 %), as
trainings of equal steps do. Regret is how far the best trial that keeps the constraints is above the optimum; of two
objectives the hypervolume that the trials dominate is told. The aim is at most half of random search's regret with the
same seed, and more than its hypervolume.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("platform", "tune", "registry")]
sys.path.insert(0, str(Path(__file__).parent))

from search.functions import PROBLEMS  # noqa: E402 - from this checkout
from search.problem import Problem, Result  # noqa: E402
from search.searchers import SEARCHERS, Searcher  # noqa: E402

LENGTHS, SLOTS = [16, 40], (1, 8)
AIM_SHARE = 0.5  # of random search's regret, in 36 of 40 seeds


def searched(problem: Problem, seed: int, slots: int, trials: int, by: type[Searcher]) -> list[Result]:
    """Results in the order in which trials end."""
    searcher = by(problem, seed, slots)
    draw, ends, results, begun, now = random.Random(seed), [], [], 0, 0.0
    while len(results) < trials:
        waits = bool(ends) and searcher.awaits_first_results and begun >= searcher.startup
        while len(ends) < slots and begun < trials and not waits:
            heapq.heappush(ends, (now + draw.uniform(0.95, 1.05), begun, searcher.ask(str(begun))))
            begun += 1
            waits = searcher.awaits_first_results and bool(ends) and begun >= searcher.startup
        now, name, values = heapq.heappop(ends)
        results.append(problem.result(values))
        searcher.tell(str(name), results[-1].costs, results[-1].excesses)
    return results


def drawn(problem: Problem, seed: int, trials: int) -> list[Result]:
    draw = random.Random(f"random {seed}")
    return [problem.result({item.name: item.at(draw.random()) for item in problem.space}) for _ in range(trials)]


def row(problem: Problem, slots: int, seeds: int, lengths: list[int], by: type[Searcher]) -> list[str]:
    """What a problem shows: quality after so many trials, and in how many seeds it is what is aimed at."""
    began, found, by_chance = time.perf_counter(), [], []
    for seed in range(seeds):
        results, chances = searched(problem, seed, slots, lengths[-1], by), drawn(problem, seed, lengths[-1])
        found.append([problem.quality(results[:count]) for count in lengths])
        by_chance.append([problem.quality(chances[:count]) for count in lengths])
    seconds = (time.perf_counter() - began) / seeds / lengths[-1]
    cells = [problem.name, problem.kind, str(slots)]
    for at, _ in enumerate(lengths):
        mine, random_ = [one[at] for one in found], [one[at] for one in by_chance]
        met = sum(problem.is_met(a, b, AIM_SHARE) for a, b in zip(mine, random_, strict=True))
        cells += [f"{mean(mine):.3g}", f"{mean(random_):.3g}", f"{met} of {seeds}"]
    return [*cells, f"{1000 * seconds:.0f} ms"]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--trials", type=int, nargs="+", default=LENGTHS, help="after how many to look")
    parser.add_argument("--slots", type=int, nargs="+", default=SLOTS, help="trials at a time")
    parser.add_argument("--searcher", choices=SEARCHERS, default="ours")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    lengths = sorted(given.trials)
    columns = (name for count in lengths for name in (f"{count} trials", "random", "aim met"))
    head = ("problem", "kind", "slots", *columns, "per proposal")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    print(*lines, sep="\n", flush=True)
    for name in given.problems:
        for slots in given.slots:
            cells = row(PROBLEMS[name], slots, given.seeds, lengths, SEARCHERS[given.searcher])
            lines.append("| " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    if given.output:
        command = " ".join(["python benchmarks/search_quality.py", *sys.argv[1:]])
        given.output.write_text(f"`{command}`, 2 CPU cores, {date.today():%-d %B %Y}:\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
