"""Collects the certificates of practice cohorts into one JSON.

    python -m benchmarks.certificates --out benchmarks/results/certificates.json \
        cohorts/fine_only cohorts/null ...

Each row is one probe of one cohort: where it looked, its AUC with 95 % interval, what
was expected ("signal": at least .85; "none": the interval covers .5) and whether that
holds.
"""

import json
import pathlib

from benchmarks import record


def rows(cohort: pathlib.Path) -> list[dict]:
    """The rows of one certificate that something was expected of."""
    read = lambda name: json.loads((cohort / name).read_text())
    certificate, config = read("certificate.json"), read("cohort.json")["config"]
    drawn = {"preset": certificate["preset"], "seed": config["seed"]}
    drawn |= {
        "source": "real tiles" if config["tiles"] else "drawn",
        "styles": config["styles"],
    }
    return [drawn | row for row in certificate["rows"] if row["expected"]]


def main() -> None:
    """Writes the JSON and prints the table."""
    parser = record.arguments(__doc__)
    parser.add_argument("cohorts", nargs="+", type=pathlib.Path)
    chosen = parser.parse_args()
    found = [row for cohort in chosen.cohorts for row in rows(cohort)]
    record.write(chosen.out, found)
    print(record.table(found))


if __name__ == "__main__":
    main()
