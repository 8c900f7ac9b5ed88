"""What each quantizer costs SmolLM2-135M: perplexity, divergence and bytes, one stack per quantizer, same text for all.

One dial, the tokens. `python examples/quantize_smollm2.py 4096` prints a table and writes quantize_smollm2.svg.
Calibrated quantizers take minutes each on a CPU; a stack that has run is not run again. Names pick rows:
`python examples/quantize_smollm2.py 1024 rtn odyssey`.
"""
# tested with: 512 rtn

import sys
from pathlib import Path

import stackloom as sl

LENGTH = 512
W4A8 = {"scheme": "w4a8", "group_size": 64}
QUANTIZERS = {
    "rtn": sl.use("quantizer.rtn", **W4A8),
    "smoothquant": sl.use("quantizer.smoothquant", **W4A8),
    "gptq": sl.use("quantizer.gptq", **W4A8),
    "fptq": sl.use("quantizer.fptq", group_size=64),
    "odyssey": sl.use("quantizer.odyssey", epochs=3, learning_rate=0.1),
    "integer-scale": sl.use("quantizer.integer-scale", base={"use": "quantizer.gptq", **W4A8}),
}


def stack(name: str, tokens: int) -> sl.Stack:
    """Quantize with what `name` stands for, then measure on held-out text beside the float model."""
    text = {"use": "data.pydoc", "held_out": 0.2}
    return sl.Stack(
        f"quantize-{name}",
        model=sl.use("model.hf", checkpoint="smollm2-135m-instruct"),
        stages=[
            sl.quantize(
                quantizer=QUANTIZERS[name],
                data={**text, "split": "train"},
                calibration_sequences=8,
                sequence_length=LENGTH,
            ),
            sl.evaluate(
                data={**text, "split": "held-out"},
                sequences=-(-tokens // LENGTH),
                sequence_length=LENGTH,
                compare_to_float=True,
            ),
        ],
        device="auto",
        dtype="auto",
    )


def measure(name: str, tokens: int) -> dict:
    """Run a stack, or find it done, and return one row of the table."""
    run = stack(name, tokens).plan().run()
    found, card = run.metrics(1), run.stages[0].card.details
    return {
        "perplexity": found["perplexity"]["value"],
        "kl": found["against_float"]["kl"]["value"],
        "loss": found["against_float"]["nll_difference"],
        "bytes": card["bytes_after"] / card["bytes_before"],
    }


def draw(rows: dict[str, dict], target: Path) -> None:
    """Write the losses above the float model with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.5 * len(rows) + 1), layout="constrained")
    axes = figure.add_subplot()
    values = [row["loss"]["value"] for row in rows.values()]
    spread = [row["loss"]["interval"][1] - row["loss"]["value"] for row in rows.values()]
    axes.errorbar(values, list(rows), xerr=spread, fmt="o", capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel("nats per token above the float model")
    figure.savefig(target)


def main(tokens: str = "4096", *names: str) -> None:
    """Print one row per quantizer and write the plot."""
    rows = {}
    print(f"{'':14} {'perplexity':>10} {'KL':>8} {'nats above float':>24} {'bytes':>6}")
    for name in names or QUANTIZERS:
        rows[name] = row = measure(name, int(tokens))
        low, high = row["loss"]["interval"]
        loss = f"{row['loss']['value']:.4f} [{low:.4f}, {high:.4f}]"
        print(f"{name:14} {row['perplexity']:10.2f} {row['kl']:8.4f} {loss:>24} {row['bytes']:6.0%}", flush=True)
    draw(rows, Path("quantize_smollm2.svg"))


if __name__ == "__main__":
    main(*sys.argv[1:])
