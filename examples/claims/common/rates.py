"""The rates that the project recommends, from the results of the experiments.

For each setting the rate with the largest gain among those whose whole interval is above 0; 0 if
there is none.
"""

from common.claim import Interval

SETTINGS = {
    "GPT, pretraining on more text than it sees once": "pretraining",
    "GPT, fine-tuning on 6,000 characters, stopped early": "6,000 characters, stopped early",
    "GPT, fine-tuning on 1,000 characters, stopped early": "1,000 characters, stopped early",
    "GPT, fine-tuning on 1,000 characters, to the end": "1,000 characters, to the end",
}
PARTNERS, BESIDE = ("layer norm", "augmentation", "early stopping"), "dropout's gain beside"


def best_rate(gains: dict[float, Interval]) -> tuple[float, Interval]:
    """The best rate and its gain; for rate 0, the gain of the smallest other rate."""
    helping = {rate: gain for rate, gain in gains.items() if gain.positive}
    rate = max(helping, key=lambda rate: helping[rate].mean, default=0.0)
    return rate, gains[rate or min(gains)]


def recommended_rates(results: dict[str, dict]) -> list[dict[str, str]]:
    """Setting, rate, gain, and the experiment that measured it."""
    table = []

    def add(setting: str, script: str, gains: dict[float, Interval], unit: str, spec: str) -> None:
        rate, gain = best_rate(gains)
        what = f"gains {gain:{spec}}" if rate else f"{min(gains):g} gains {gain:{spec}}"
        row = {"setting": setting, "rate": f"{rate:g}", "why": f"{what} {unit}"}
        link = f"[{script.split('/')[1]}](../examples/claims/{script}.py)"
        table.append(row | {"measured by": link})

    losses = results["gpt_rates"]["numbers"]["loss, difference to rate 0"]
    for setting, name in SETTINGS.items():
        gains = {float(rate): -parse_interval(each) for rate, each in losses[name].items()}
        add(setting, "learning/gpt_rates", gains, "nats a character", "+.3f")
    for part in ("head", "body"):
        script = f"genre_{part}_rates"
        of_rate = results[script]["numbers"]["gained"]["macro-F1"]
        gains = {float(rate): parse_interval(each) for rate, each in of_rate.items()}
        setting = f"GPT classifying speeches, 2,000 examples, its {part}"
        add(setting, f"finetuning/{script}", gains, "of macro-F1", "+.3f")
    numbers = results["data_size"]["numbers"]
    gained = numbers["test accuracy gained"]
    for width, title in (("wide", "MLP of 128 units"), ("narrow", "MLP of 8 units")):
        for size, cells in zip(numbers["sizes"], gained[width], strict=True):
            if size not in (300, 1000, 100_000):
                continue
            pairs = zip(numbers["rates"], map(parse_interval, cells), strict=True)
            gains = {rate: gain.percent() for rate, gain in pairs if rate}
            setting = f"{title}, images, {size:,} examples"
            add(setting, "learning/data_size", gains, "points", "+.1f")
    for partner in PARTNERS:
        gain = parse_interval(
            results["interactions"]["numbers"]["accuracy"][partner][BESIDE]
        ).percent()
        setting = f"MLP, 500 images, beside {partner}"
        add(setting, "learning/interactions", {0.5: gain}, "points", "+.2f")
    return table


def parse_interval(record: dict) -> Interval:
    """An interval from its form in JSON."""
    return Interval(record["mean"], *record["95 %"])
