"""How well the bundled domain classifier labels the held-out disaster documents, with and without neighbours.

python benchmarks/corpora/domain_classifier.py   # 30 s on a CPU; docs/corpora.md, "The domain classifier", quotes it
"""

from __future__ import annotations

from edgequant.corpora.disaster.domain_classifier import Report, held_out_report
from edgequant.corpora.documents import DOMAINS, NO_DOMAIN


def main() -> None:
    print(f"{'held out':28} {'passages':>8} {'accuracy':>8}  {'  '.join(DOMAINS)}")
    for split, alone in (("test", False), ("test", True), ("validation", False)):
        print_scores(
            f"{split}, {'each passage alone' if alone else 'with neighbours'}", held_out_report(split, alone=alone)
        )
    print_confusion(held_out_report("test"))


def print_scores(what: str, report: Report) -> None:
    scores = "  ".join(f"{report.f1[name]:{len(name)}.2f}" for name in DOMAINS)
    print(f"{what:28} {report.passages:8} {report.accuracy:8.1%}  {scores}")


def print_confusion(report: Report) -> None:
    print("\ntrue (rows), predicted (columns), test, with neighbours; then what went wrong")
    for name in DOMAINS:
        print(f"{name:28} {'  '.join(f'{report.confusion[name][other]:3}' for other in (*DOMAINS, NO_DOMAIN))}")
    for error in report.errors:
        print(f"{error['source']}: {error['domain']} taken for {error['name']} ({error['confidence']:.2f})")


if __name__ == "__main__":
    main()
