"""What int4 weights and int8 activations cost SmolLM2-135M, by quantizer: accuracy, bytes, seconds and memory.

One dial, the tokens. `python examples/quantize_smollm2.py 4096` prints a table and writes quantize_smollm2.svg; names
pick rows: `python examples/quantize_smollm2.py 2048 rtn odyssey`. A row is one stack, all on the same text, each in a
process of its own, so that its memory is its own. A stack that has run is not run again; runs/quantize-*/report.html
show each layer.
"""
# tested with: 2048 float rtn

import json
import sys
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import stackloom as sl

LENGTH, ITEMS = 512, 40
W4A8 = {"scheme": "w4a8", "group_size": 64}
QUANTIZERS = {
    "float": None,
    "rtn": sl.use("quantizer.rtn", **W4A8),
    "smoothquant": sl.use("quantizer.smoothquant", **W4A8),
    "gptq": sl.use("quantizer.gptq", **W4A8),
    "awq": sl.use("quantizer.awq", **W4A8),
    "fptq": sl.use("quantizer.fptq", group_size=64),
    "odyssey": sl.use("quantizer.odyssey", epochs=3, learning_rate=0.1),
    "integer-scale": sl.use("quantizer.integer-scale", base={"use": "quantizer.gptq", **W4A8}),
}


def stack(name: str, tokens: int) -> sl.Stack:
    """Quantize with what `name` stands for, then measure on held-out text beside the float model."""
    text = {"use": "data.pydoc", "held_out": 0.2}
    quantizer = QUANTIZERS[name]
    calibration = {"data": {**text, "split": "train"}, "calibration_sequences": 8, "sequence_length": LENGTH}
    return sl.Stack(
        f"quantize-{name}",
        model=sl.use("model.hf", checkpoint="smollm2-135m-instruct"),
        stages=[
            *([sl.quantize(quantizer=quantizer, **calibration)] if quantizer else []),
            sl.evaluate(
                data={**text, "split": "held-out"},
                sequences=-(-tokens // LENGTH),
                sequence_length=LENGTH,
                compare_to_float=quantizer is not None,
                cloze=ITEMS,
            ),
        ],
        device="auto",
        dtype="auto",
    )


def measure(tokens: int, name: str) -> dict:
    """Run a stack, or find it done, and return one row of the table."""
    run = stack(name, tokens).plan().run()
    found = run.metrics(-1)
    row = {"perplexity": found["perplexity"]["value"], "right": found["cloze"]["value"]}
    if QUANTIZERS[name]:
        card, spent = run.stages[0].card.details, json.loads((run.folder / "run.json").read_text())
        row |= {"kl": found["against_float"]["kl"]["value"], "above": found["against_float"]["nll_difference"]}
        row |= {"bytes": card["bytes_after"] / card["bytes_before"]}
        row |= {"seconds": spent["seconds"][0], "peak": spent["peak_bytes"][0] / 2**30}
    return row


def draw(rows: dict[str, dict], target: Path) -> None:
    """Write the losses above the float model with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.4 * len(rows) + 1), layout="constrained")
    axes = figure.add_subplot()
    values = [row["above"]["value"] for row in rows.values()]
    spread = [row["above"]["interval"][1] - row["above"]["value"] for row in rows.values()]
    axes.errorbar(values, list(rows), xerr=spread, fmt="o", capsize=3)
    axes.margins(y=0.1)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("nats per token above the float model, 95 % interval")
    figure.savefig(target)


def main(tokens: str = "4096", *names: str) -> None:
    """Print one row per quantizer and write the plot."""
    chosen, rows = names or tuple(QUANTIZERS), {}
    print(f"{'':13} perplexity  right         nats above float      KL  bytes  seconds  peak GiB")
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name, row in zip(chosen, pool.imap(partial(measure, int(tokens)), chosen), strict=True):
            line = f"{name:13} {row['perplexity']:10.2f} {row['right']:6.0%}"
            if "above" in row:
                rows[name], (low, high) = row, row["above"]["interval"]
                line += f"  {row['above']['value']:.4f} ({low:.4f} to {high:.4f}) {row['kl']:7.4f} {row['bytes']:6.0%}"
                line += f" {row['seconds']:8.1f} {row['peak']:9.2f}"
            print(line, flush=True)
    if rows:
        draw(rows, Path("quantize_smollm2.svg"))


if __name__ == "__main__":
    main(*sys.argv[1:])
