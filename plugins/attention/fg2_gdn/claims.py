"""FG2-GDN's identities, its cost in length, recall against KDA with matched parameters, and a retrofit."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from stackloom.core.claims import ClaimContext, ClaimResult, Curve, Table
from stackloom.core.statistics import mean_interval
from stackloom.kernels.gated_delta import chunk, chunkwise, gated_delta, normalize, reference
from stackloom.kernels.gated_delta.contract import inputs
from stackloom.plugins.attention.distillation import distil, held_out_loss, pass_the_present_token

DOUBLE = torch.float64
LENGTHS = (1, 15, 16, 17, 63, 64, 65, 257)
CHECKPOINT = "smollm2-135m-instruct"
ARMS: dict[str, dict[str, Any]] = {
    "GDN": {"use": "attention.gdn"},
    "KDA": {"use": "attention.kda"},
    "FG2-GDN": {"use": "attention.fg2-gdn"},
    "FG2-GDN+": {"use": "attention.fg2-gdn", "variant": "plus"},
}
HELD_OUT = 256  # examples
WARM_UP = 3  # steps before a GPU captures one
LARGEST = "FG2-GDN+"  # the arm that the others' MLPs are widened to


@dataclass(frozen=True)
class Recall:
    """One experiment: sizes of the model and the task, and how long it trains."""

    hidden: int = 64
    heads: int = 2
    intermediate: int = 128
    keys: int = 64
    values: int = 64
    length: int = 128
    pairs: int = 16
    batch: int = 32
    steps: int = 3000
    examples: int = 16_384
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    capacity: tuple[int, ...] = (4, 8, 16, 32)


RECALL = {
    "cpu-full": Recall(pairs=8, steps=1500, capacity=(4, 8, 12, 16)),
    "gpu": Recall(keys=32, values=32, length=64, pairs=8, batch=64, rates=(1e-3, 3e-3, 1e-2), capacity=(4, 8, 12, 16)),
}


_WAITING: list[Any] = []  # trainings that workers take by number


class Symbols:
    """Stands in for a tokenizer where tokens are plain numbers."""

    eos_token_id = None

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


# --- identities ------------------------------------------------------------------------------------------------------


def reduces_to_its_family(ctx: ClaimContext) -> ClaimResult:
    """Largest distance, float64, of FG2-GDN with gates held equal from KDA, GDN and DeltaNet written out."""
    torch.manual_seed(ctx.seeds[0])
    q, k, v = (torch.randn(2, 100, 2, 16, dtype=DOUBLE) for _ in range(3))
    g, beta = -torch.rand(2, 100, 2, 16, dtype=DOUBLE), torch.rand(2, 100, 2, dtype=DOUBLE)
    vector = beta[..., None].expand_as(k)
    rows, worst = [], 0.0
    for name, decay in (("KDA", g), ("GDN", g[..., :1].expand_as(k)), ("DeltaNet", torch.zeros_like(k))):
        ours = gated_delta(q, k, v, decay, vector)[0]
        plus = gated_delta(q, k, v, decay, vector, vector)[0]
        theirs = _written_out(normalize(q), normalize(k), v, decay.exp(), beta)
        far = max(float((ours - theirs).abs().max()), float((plus - theirs).abs().max()))
        rows.append((name, far))
        worst = max(worst, far)
    table = Table(title="Largest distance from the rule written out", columns=("rule", "float64"), rows=tuple(rows))
    return ClaimResult(ours=worst, baseline=0.0, seeds=tuple(ctx.seeds[:1]), details={"tables": [table]})


def _written_out(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """(I - beta k k^T) Diag(alpha) S + beta k v^T, with the transition as a matrix."""
    S, outputs = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[-1]), []
    for t in range(q.shape[1]):
        key, b = k[:, t], beta[:, t, :, None, None]
        transition = torch.eye(q.shape[-1], dtype=q.dtype) - b * key[..., None] * key[..., None, :]
        S = transition @ (alpha[:, t, ..., None] * S) + b * key[..., None] * v[:, t, :, None]
        outputs.append(q.shape[-1] ** -0.5 * (q[:, t, :, None] @ S).squeeze(2))
    return torch.stack(outputs, 1)


def chunks_are_the_recurrence(ctx: ClaimContext) -> ClaimResult:
    """Largest distance, float64, of outputs, states and explicit gradients from the recurrence's, over odd lengths."""
    worst, rows = 0.0, []
    for tokens in LENGTHS:
        leaves = [x.requires_grad_() for x in inputs(1, tokens, 2, 16, 12, dtype=DOUBLE)]
        o, final = reference.recurrent(*leaves, None, 0.25)
        directions = torch.ones_like(o), torch.ones_like(final)
        truth = torch.autograd.grad((o, final), leaves, directions)
        with torch.no_grad():
            chunked = chunkwise.forward(*leaves, None, 0.25)
            gradients = chunkwise.backward(*directions, *leaves, None, 0.25)
        values = max(float((a - b).abs().max()) for a, b in zip(chunked, (o.detach(), final.detach()), strict=True))
        slopes = max(
            float((a - b).abs().max() / b.abs().max().clamp_min(1)) for a, b in zip(gradients, truth, strict=True)
        )
        rows.append((tokens, values, slopes))
        worst = max(worst, values, slopes)
    table = Table(
        title="Chunks against the recurrence, float64", columns=("tokens", "values", "gradients"), rows=tuple(rows)
    )
    return ClaimResult(ours=worst, baseline=0.0, seeds=tuple(ctx.seeds[:1]), details={"tables": [table]})


def never_expands(ctx: ClaimContext) -> ClaimResult:
    """Largest spectral norm of a transition over 20,000 draws, over 1; the naive left-gated form stands beside it."""
    torch.manual_seed(ctx.seeds[0])
    k = normalize(torch.randn(20_000, 16, dtype=DOUBLE), eps=0.0)
    beta, alpha = torch.rand(20_000, 16, dtype=DOUBLE), torch.rand(20_000, 1, 16, dtype=DOUBLE)
    eye, root = torch.eye(16, dtype=DOUBLE), beta.sqrt() * k
    norms = [
        float(torch.linalg.matrix_norm(matrix, 2).max())
        for matrix in (
            (eye - root[..., None] * root[..., None, :]) * alpha,
            eye - (beta * k)[..., None] * k[..., None, :],
        )
    ]
    return ClaimResult(
        ours=norms[0], baseline=1 + 1e-12, seeds=tuple(ctx.seeds[:1]), details={"left_gated_form": norms[1]}
    )


def bfloat16_stays_close(ctx: ClaimContext) -> ClaimResult:
    """Largest relative RMS error of outputs against float64, by dtype and length, at the longest length in bfloat16."""
    lengths = (64, 256, 1024, 2048) if ctx.scale == "cpu" else (64, 256, 1024, 2048, 8192, 16_384)
    errors: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for tokens in lengths:
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            narrow = [x.to(ctx.device) for x in inputs(1, tokens, 2, 32, 32, dtype=dtype)[:4]]
            o, _ = chunk(*narrow, implementation="reference" if ctx.device == "cpu" else "triton")
            truth, _ = chunkwise.forward(*(x.double() for x in narrow), None, None, 32**-0.5)
            errors[name].append(float((o.double() - truth).norm() / truth.norm()))
    curve = Curve(
        title="Error against float64",
        across="tokens",
        up="relative RMS",
        x=lengths,
        series={name: tuple(series) for name, series in errors.items()},
    )
    return ClaimResult(
        ours=max(errors["bfloat16"]), baseline=1e-2, seeds=tuple(ctx.seeds[:1]), details={"curves": [curve]}
    )


# --- cost in length --------------------------------------------------------------------------------------------------


def time_is_linear_in_length(ctx: ClaimContext) -> ClaimResult:
    """Exponent of the chunkwise forward and backward's time in length; the recurrence's times stand beside it."""
    lengths = (512, 1024, 2048, 4096) if ctx.device == "cpu" else (8192, 16_384, 32_768, 65_536)
    chunks = functools.partial(chunk, implementation="reference" if ctx.device == "cpu" else "triton")
    times: dict[str, list[float | None]] = {"chunks": [], "recurrence": []}
    for tokens in lengths:
        call = [x.to(ctx.device) for x in inputs(1, tokens, 4, 32, 32)[:4]]
        for name, rule in (("chunks", chunks), ("recurrence", reference.recurrent)):
            slow = name == "recurrence" and tokens > 1024
            times[name].append(None if slow else _seconds(rule, call))
    logs = [(math.log(t), math.log(s)) for t, s in zip(lengths, times["chunks"], strict=True) if s]
    mean_x, mean_y = (sum(column) / len(logs) for column in zip(*logs, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)
    curve = Curve(
        title="Forward and backward, 4 heads of 32 channels, float32",
        across="tokens",
        up="processor seconds" if ctx.device == "cpu" else "seconds",
        x=lengths,
        series={name: tuple(series) for name, series in times.items()},
    )
    return ClaimResult(ours=slope, baseline=1.1, seeds=tuple(ctx.seeds[:1]), details={"curves": [curve]})


def _seconds(rule: Callable[..., Any], call: list[Tensor]) -> float:
    """Best of five; on a CPU processor time, so that what else runs on the machine does not count."""
    clock = time.process_time if call[0].device.type == "cpu" else time.perf_counter
    best = math.inf
    for _ in range(5):
        leaves = [x.clone().requires_grad_() for x in call]
        start = clock()
        torch.autograd.grad(rule(*leaves, None, None, 32**-0.5)[0].sum(), leaves)
        if call[0].is_cuda:
            torch.cuda.synchronize()
        best = min(best, clock() - start)
    return best


# --- recall ----------------------------------------------------------------------------------------------------------


def plus_recalls_more_than_kda(ctx: ClaimContext) -> ClaimResult:
    """Query accuracy of FG2-GDN+ minus KDA's, paired by seed: each key is bound once (page section 5 B)."""
    return _recall(ctx, "associative")


def plus_recalls_overwritten_keys(ctx: ClaimContext) -> ClaimResult:
    """As above, where keys are bound anew and the last value counts."""
    return _recall(ctx, "overwrite")


def plus_recalls_amid_noise(ctx: ClaimContext) -> ClaimResult:
    """As above, where noise lies between the pairs."""
    return _recall(ctx, "noise")


def _recall(ctx: ClaimContext, task: str) -> ClaimResult:
    """Each arm learns at its best rate, which is chosen on one more seed than is reported."""
    rates = _best_rates(ctx, task)
    found = iter(_accuracies(ctx, [_Training(ctx, arm, task, seed, rates[arm]) for arm in ARMS for seed in ctx.seeds]))
    scores = {arm: [next(found) for _ in ctx.seeds] for arm in ARMS}
    gain = mean_interval([a - b for a, b in zip(scores[LARGEST], scores["KDA"], strict=True)])
    rows = tuple((seed, *(scores[arm][i] for arm in ARMS)) for i, seed in enumerate(ctx.seeds))
    return ClaimResult(
        ours=gain["value"],
        interval=gain["interval"],
        baseline=0.0,
        seeds=tuple(ctx.seeds),
        details={
            "tables": [Table(title="Query accuracy, held out", columns=("seed", *ARMS), rows=rows)],
            "learning_rate": rates,
            "parameters": {arm: _count(ctx, arm, _width(ctx, arm)) for arm in ARMS},
        },
    )


def state_capacity(ctx: ClaimContext) -> ClaimResult:
    """Accuracy of FG2-GDN+ at the most pairs, minus KDA's; the plot has every arm over the number of pairs."""
    counts = RECALL[ctx.scale].capacity
    rates, seed = _best_rates(ctx, "associative"), ctx.seeds[0]
    trained = iter(
        _accuracies(
            ctx,
            [
                _Training(ctx, arm, "associative", seed, rates[arm], pairs=pairs, length=8 * pairs)
                for arm in ARMS
                for pairs in counts
            ],
        )
    )
    series: dict[str, tuple[float | None, ...]] = {arm: tuple(next(trained) for _ in counts) for arm in ARMS}
    curve = Curve(title="State capacity", across="pairs", up="query accuracy", x=counts, series=series)
    ours, theirs = series[LARGEST][-1], series["KDA"][-1]
    assert ours is not None
    return ClaimResult(ours=ours, baseline=theirs, seeds=(seed,), details={"curves": [curve], "learning_rate": rates})


def _best_rates(ctx: ClaimContext, task: str) -> dict[str, float]:
    """The learning rate of each arm that gives the best accuracy, on a seed that no result is reported for."""
    rates = RECALL[ctx.scale].rates
    sweep = [(arm, rate) for arm in ARMS for rate in rates]
    scores = _accuracies(ctx, [_Training(ctx, arm, task, max(ctx.seeds) + 1, rate) for arm, rate in sweep])
    by_arm: dict[str, dict[float, float]] = {arm: {} for arm in ARMS}
    for (arm, rate), score in zip(sweep, scores, strict=True):
        by_arm[arm][rate] = score
    return {arm: max(found, key=found.__getitem__) for arm, found in by_arm.items()}


def _sizes(ctx: ClaimContext, arm: str, intermediate: int) -> dict[str, Any]:
    size = RECALL[ctx.scale]
    return {
        "attention": ARMS[arm],
        "layers": 2,
        "hidden": size.hidden,
        "heads": size.heads,
        "intermediate": intermediate,
        "full_every": 0,
        "vocab": _symbols(ctx),
    }


def _symbols(ctx: ClaimContext) -> int:
    size = RECALL[ctx.scale]
    return max(258, size.keys + size.values + 17)


@functools.cache
def _count(ctx: ClaimContext, arm: str, intermediate: int) -> int:
    model = ctx.component("model.gated-delta-lm", **_sizes(ctx, arm, intermediate)).load(device="cpu", dtype="float32")
    return sum(parameter.numel() for parameter in model.parameters())


def _width(ctx: ClaimContext, arm: str) -> int:
    """MLP width at which the arm has as many parameters as the largest one; a unit costs 3 hidden per layer."""
    size = RECALL[ctx.scale]
    missing = _count(ctx, LARGEST, size.intermediate) - _count(ctx, arm, size.intermediate)
    return size.intermediate + round(missing / (2 * 3 * size.hidden))


class _Training:
    """One small model on one task. A step reads nothing but tensors on the device, so that a GPU can replay it."""

    def __init__(self, ctx: ClaimContext, arm: str, task: str, seed: int, rate: float, **changes: int) -> None:
        size = RECALL[ctx.scale]
        self.title = f"{task}, {arm}, seed {seed}, rate {rate:g}"
        self._model = ctx.component("model.gated-delta-lm", seed=seed, **_sizes(ctx, arm, _width(ctx, arm))).load(
            device=ctx.device, dtype="float32"
        )
        options = {"length": size.length, "pairs": size.pairs, "keys": size.keys, "values": size.values} | changes
        options["queries"] = options["pairs"]
        if task == "overwrite":
            options["length"] = max(options["length"], 6 * options["pairs"])
        self._data = _drawn(ctx, task, seed, "train", size.examples, **options)
        self._held_out = _drawn(ctx, task, seed, "held-out", HELD_OUT, **options)
        self._order = _shuffled(size, seed).to(ctx.device)
        self._rates = rate * _one_cycle(size.steps).to(ctx.device)
        self._at = torch.zeros(1, dtype=torch.int64, device=ctx.device)
        self._rate = torch.zeros((), device=ctx.device)
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=self._rate, weight_decay=0.01, capturable=ctx.device != "cpu"
        )
        self._model.train()

    def step(self) -> None:
        """Learn from the next batch."""
        rows = self._order.index_select(0, self._at)[0]
        self._rate.copy_(self._rates.index_select(0, self._at)[0])
        self._at.add_(1)
        tokens, labels = (x.index_select(0, rows) for x in self._data)
        self._optimizer.zero_grad()
        self._model(input_ids=tokens, labels=labels, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()

    def captured(self) -> Callable[[], None]:
        """The next steps as replays of a CUDA graph on a stream of its own: small models then train side by side."""
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self.step()

        def replay() -> None:
            with torch.cuda.stream(stream):
                graph.replay()

        return replay

    def accuracy(self) -> float:
        """Share of the held-out queries that are answered right."""
        tokens, labels = self._held_out
        self._model.eval()
        with torch.no_grad():
            guesses = self._model(input_ids=tokens, use_cache=False).logits[:, :-1].argmax(-1)
        self._model.train()
        asked = labels[:, 1:] >= 0
        return float((guesses == labels[:, 1:])[asked].float().mean())


def _accuracies(ctx: ClaimContext, trainings: list[_Training]) -> list[float]:
    """Train each to its end and return the accuracies: side by side on a GPU, or one per core."""
    steps, found = RECALL[ctx.scale].steps, []
    if ctx.device == "cpu":
        _WAITING[:] = trainings
        cores = len(os.sched_getaffinity(0))
        with ProcessPoolExecutor(
            cores, get_context("fork"), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:  # forked, so that workers see what waits
            ended = pool.map(_finish, range(len(trainings)), [steps] * len(trainings))
            for training, accuracy in zip(trainings, ended, strict=True):
                found.append(accuracy)
                ctx.say(f"{training.title}: accuracy {accuracy:.3f}")
        _WAITING.clear()
        return found
    replays = [training.captured() for training in trainings]
    for _ in range(steps - WARM_UP):
        for replay in replays:
            replay()
    torch.cuda.synchronize()
    for training in trainings:
        found.append(training.accuracy())
        ctx.say(f"{training.title}: accuracy {found[-1]:.3f}")
    return found


def _finish(index: int, steps: int) -> float:
    for _ in range(steps):
        _WAITING[index].step()
    return _WAITING[index].accuracy()


def _shuffled(size: Recall, seed: int) -> Tensor:
    """Rows of each step's batch, (steps, batch): every example once before any comes again."""
    draw = torch.Generator().manual_seed(seed)
    rounds = -(-size.steps * size.batch // size.examples)
    order = torch.cat([torch.randperm(size.examples, generator=draw) for _ in range(rounds)])
    return order[: size.steps * size.batch].view(size.steps, size.batch)


def _one_cycle(steps: int) -> Tensor:
    """Factors on the learning rate: up in a tenth of the steps, down along a cosine."""
    at, rise = torch.arange(steps, dtype=torch.float64), max(1, steps // 10)
    fall = 0.5 + 0.5 * torch.cos(math.pi * (at - rise).clamp_min(0) / (steps - rise))
    return torch.minimum((at + 1) / rise, fall).float()


@functools.lru_cache(maxsize=8)
def _drawn(ctx: ClaimContext, task: str, seed: int, split: str, examples: int, **options: int) -> tuple[Tensor, Tensor]:
    """Tokens, and labels that are -100 where nothing is asked, (examples, length) each."""
    data = ctx.component(
        "data.recall", Symbols(_symbols(ctx)), task=task, seed=seed, split=split, examples=examples, **options
    )
    drawn = [data[row] for row in range(examples)]
    tokens = torch.tensor([example.input_ids for example in drawn], device=ctx.device)
    asked = torch.tensor([example.loss_mask for example in drawn], device=ctx.device)
    return tokens, tokens.masked_fill(~asked, -100)


# --- retrofit --------------------------------------------------------------------------------------------------------


def recovers_a_replaced_layer(ctx: ClaimContext) -> ClaimResult:
    """Share of the held-out likelihood, lost when layers of SmolLM2 are replaced, that distillation brings back."""
    layers, steps, length = ((3,), 80, 128) if ctx.scale == "cpu" else ((3, 9, 15, 21), 600, 256)
    attention = {"use": "attention.fg2-gdn", "variant": "plus"}
    teacher = ctx.component("model.hf", checkpoint=CHECKPOINT)
    tokenizer = teacher.tokenizer()
    teacher = teacher.load(device=ctx.device, dtype="float32")
    student = ctx.component("model.hf", checkpoint=CHECKPOINT, attention=attention, attention_layers=layers).load(
        device=ctx.device, dtype="float32"
    )
    for index in layers:
        pass_the_present_token(student.model.layers[index].self_attn.mixer)
    text = ctx.data("data.pydoc", tokenizer, sequences=256, sequence_length=length)
    held_out = torch.stack(
        list(ctx.data("data.pydoc", tokenizer, sequences=8, sequence_length=length, split="held-out"))
    ).to(ctx.device)

    def batches() -> Iterator[Tensor]:
        draw = torch.Generator().manual_seed(ctx.seeds[0])
        while True:
            yield torch.stack([text[i] for i in torch.randint(len(text), (4,), generator=draw)]).to(ctx.device)

    whole, replaced = held_out_loss(teacher, held_out), held_out_loss(student, held_out)
    until = max(layers) + 1  # the rest of the teacher is not needed to see these layers' inputs
    shortened = _Beginning(teacher, until)
    curve = distil(shortened, student, layers, batches(), steps, say=ctx.say)
    taught = held_out_loss(student.eval(), held_out)
    ctx.say(f"held-out loss: {whole:.3f} as trained, {replaced:.3f} replaced, {taught:.3f} taught")
    return ClaimResult(
        ours=(replaced - taught) / (replaced - whole),
        baseline=0.5,
        seeds=tuple(ctx.seeds[:1]),
        details={
            "layers": list(layers),
            "held_out_loss": {"as trained": whole, "replaced": replaced, "taught": taught},
            "curves": [
                Curve(
                    title="Distillation",
                    across="step",
                    up="squared error over the old attention's square",
                    x=tuple(range(steps)),
                    series={"loss": tuple(curve)},
                )
            ],
        },
    )


class _Beginning:
    """The first layers of a model, seen as a model."""

    def __init__(self, model: Any, layers: int) -> None:
        self.model = _FirstLayers(model.model, layers)


class _FirstLayers:
    def __init__(self, decoder: Any, count: int) -> None:
        self.decoder, self.count, self.layers = decoder, count, decoder.layers

    def __call__(self, **inputs: Any) -> Any:
        count, self.decoder.config.num_hidden_layers = self.decoder.config.num_hidden_layers, self.count
        try:
            return self.decoder(**inputs)
        finally:
            self.decoder.config.num_hidden_layers = count
