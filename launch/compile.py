"""`selfevolve compile`: a recipe's step compiled for devices that are not there; what it would take."""

from __future__ import annotations

import bisect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from models import decoder
from models.params import count
from selfevolve_jax import aot, roofline, sharding
from selfevolve_jax.chips import GIB, Chip, parse_topology
from selfevolve_jax.errors import UserError
from selfevolve_jax.images import ImageConfig, largest_picture
from selfevolve_jax.mm_upt.drawn import module
from selfevolve_jax.mm_upt.recipe import MMUPTRecipe
from selfevolve_jax.srt.levels import LevelsRecipe
from selfevolve_jax.srt.recipe import SRTRecipe
from selfevolve_jax.starting_point import read_model
from selfevolve_jax.tasks import arithmetic
from selfevolve_jax.tasks.arithmetic import ArithmeticConfig
from selfevolve_jax.tasks.dataset import DataConfig

REMATS = ("none", "dots", "full")  # cheapest first
INSTALL = "uv sync --extra tpu, or: uv pip install 'jax[tpu]'"
Recipe = SRTRecipe | LevelsRecipe | MMUPTRecipe


@dataclass(frozen=True)
class Compile:
    """Compiles a recipe's step for devices that need not be there: memory, FLOPs, traffic, time.

    topology: TPUs by version and torus (v5e:16x16, v5p:4x4x4, v6e:8x8), or GPUs by number (h100:8),
      which are estimated and not compiled for.
    search: find the cheapest remat and the smallest trainer.grpo.accumulate that fit, then the most
      trainer.rollout.slots. It compiles several times.
    prompt_tokens: of the longest prompt, images' tokens among them; the task's limit if it has one.
    only: what is compiled, of encode, prefill, admit, grow, decode, score, update; all by default.
    json: a file that a line with the figures is added to; docs/scale.py makes the table from it.
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    topology: str = ""
    search: bool = False
    prompt_tokens: int | None = None
    only: tuple[str, ...] = ()
    json: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.recipe, Recipe):
            raise UserError(
                f"a {type(self.recipe).__name__} has no one step to compile. Name a recipe that trains "
                "one policy."
            )


def compile(options: Compile, name: str) -> None:
    """Prints the plan; UserError for what is mistaken, or does not fit. name: the recipe, as typed."""
    if not options.topology:
        raise UserError(f"compile {name} needs --topology, such as v5e:16x16, v5p:4x4x4 or h100:8.")
    chip, sides = parse_topology(options.topology)
    step = make_step(options, chip, sides)
    if options.search:
        step = search(step, partial(fits, chip))
    programs = aot.programs(step) if chip.is_tpu else []
    unknown = [n for n in options.only if n not in [p.name for p in programs]]
    if unknown:
        names = ", ".join(p.name for p in programs) or "none: GPUs are estimated, not compiled for"
        raise UserError(f"--only {' '.join(options.only)}: this step has {names}.")
    say(header(options, step, chip, name))
    done: list[aot.Compiled] = []
    for program in programs:
        if not options.only or program.name in options.only:
            done.append(aot.compile_program(program))
            say(program_lines(done[-1], chip))
    say(summary(step, chip, done))
    if options.json:
        line = json.dumps(figures(options, step, chip, name, done))
        with Path(options.json).open("a") as file:
            file.write(line + "\n")
    refuse(needs(step, chip, done), step, chip)


def fits(chip: Chip, step: aot.Step, name: str) -> bool:
    """Whether a program does, as compiled, or on GPUs as estimated."""
    if chip.is_tpu:
        program = next(p for p in aot.programs(step) if p.name == name)
        needed = aot.compile_program(program).needs
    else:
        needed = estimates(step)["update" if name == "update" else "decode"]
    tried = (
        f"remat {step.model.remat}, accumulate {step.trainer.grpo.accumulate}, slots {step.slots}"
    )
    print(f"search       {name} with {tried}: {gib(needed)} of {gib(chip.hbm)}", flush=True)
    return needed <= chip.hbm


def needs(step: aot.Step, chip: Chip, done: Sequence[aot.Compiled]) -> dict[str, int]:
    return {d.program.name: d.needs for d in done} if chip.is_tpu else estimates(step)


def estimates(step: aot.Step) -> dict[str, int]:
    held = roofline.held(step)
    return {"update": held.update, "decode": held.sampling}


def make_step(options: Compile, chip: Chip, sides: tuple[int, ...]) -> aot.Step:
    recipe = options.recipe
    model = read_model(recipe.policy)
    if recipe.trainer.lora.rank and not model.lora.rank:
        model = replace(model, lora=recipe.trainer.lora)
    prompt, patches = longest(options, model)
    mesh = make_mesh(recipe, chip, sides, options.topology)
    step = aot.Step(model, recipe.trainer, mesh, prompt, patches)
    roofline.held(step)  # a size that does not divide over the mesh is told of now
    return step


def make_mesh(recipe: Recipe, chip: Chip, sides: tuple[int, ...], topology: str) -> Any:
    """The recipe's mesh over devices that are not there."""
    if not chip.is_tpu:
        return sharding.abstract_mesh(recipe.mesh, sides[0])
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
        from jax.experimental import topologies
    except ImportError:
        raise UserError(
            f"--topology {topology}: compiling for TPUs needs libtpu, which is not installed; no TPU "
            f"is needed. Fix: {INSTALL}. Topologies of GPUs (h100:8) are estimated without it."
        ) from None
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"--topology {topology} is none that libtpu knows: {str(error).splitlines()[0]}. Sides are "
            "multiples of the host's, such as v5e:4x4, v5e:16x16, v5p:2x2x4, v5p:4x4x4."
        ) from error
    try:
        return sharding.make_mesh(recipe.mesh, list(described.devices))
    except NotImplementedError as error:
        m = recipe.mesh
        raise UserError(
            f"mesh.data={m.data}, mesh.fsdp={m.fsdp}, mesh.tensor={m.tensor} do not lie on the torus "
            f"{topology}: each must be a product of whole sides. Choose sizes such as "
            f"fsdp={len(described.devices) // sides[-1]}, tensor={sides[-1]}."
        ) from error


def longest(options: Compile, model: Any) -> tuple[int, int]:
    """(tokens of the longest prompt, places for patches of its image) of the recipe's task."""
    recipe = options.recipe
    task = recipe.levels[-1] if isinstance(recipe, LevelsRecipe) else recipe.task
    prompt = options.prompt_tokens or getattr(task, "max_prompt_tokens", None)
    if prompt is None and isinstance(task, ArithmeticConfig):
        few = replace(task, train_rows=len(task.numbers), held_out_rows=len(task.numbers))
        prompt = max(len(row.prompt_tokens) for row in arithmetic.load_task(few, 0).train)
    if prompt is None:
        raise UserError(
            f"the task {type(task).__name__} sets no limit to its prompts. Give that of the longest: "
            "--prompt-tokens N."
        )
    if prompt < 1:
        raise UserError(f"--prompt-tokens {prompt} must be at least 1.")
    if model.vision is None or not isinstance(recipe, MMUPTRecipe):
        return prompt, 0
    if isinstance(recipe.task, DataConfig):
        areas: dict[str, Any] = {"min_pixels": recipe.min_pixels, "max_pixels": recipe.max_pixels}
        images = ImageConfig(**{name: area for name, area in areas.items() if area is not None})
    else:
        images = module(recipe.task).IMAGES
    tokens, patches = largest_picture(images, model.vision)
    if tokens >= prompt:
        raise UserError(
            f"an image of max_pixels={images.max_pixels:,} is {tokens:,} tokens, and the longest "
            f"prompt is {prompt:,}. Raise --prompt-tokens, or lower --max-pixels."
        )
    return prompt, patches


def search(step: aot.Step, fits: Callable[[aot.Step, str], bool]) -> aot.Step:
    """The cheapest remat with which the update fits, with it the smallest accumulate (the largest batch
    a piece), and with both the most slots. fits(step, program): whether that program does.

    Memory falls as accumulate grows and rises with slots, so each is found by bisection."""
    c = step.trainer
    most = step.rows // step.ways // c.grpo.minibatches
    pieces = [n for n in range(1, most + 1) if most % n == 0]

    def update(remat: str, accumulate: int) -> aot.Step:
        grpo = replace(c.grpo, accumulate=accumulate)
        model = replace(step.model, remat=remat)
        return replace(step, model=model, trainer=replace(c, grpo=grpo))

    for remat in REMATS:
        found = first_that(pieces, lambda n, remat=remat: fits(update(remat, n), "update"))
        if found is not None:
            step = update(remat, found)
            break
    else:
        return step  # the report says what it needs
    c = step.trainer
    slots = sorted({min(step.ways * 2**i, step.samples) for i in range(16)}, reverse=True)

    def sampling(n: int) -> aot.Step:
        return replace(step, trainer=replace(c, rollout=replace(c.rollout, slots=n)))

    best = first_that(slots, lambda n: all(fits(sampling(n), p) for p in ("decode", "admit")))
    return step if best is None else sampling(best)


def first_that(values: Sequence[int], holds: Callable[[int], bool]) -> int | None:
    """The first value for which it holds, where it holds for all after one that it holds for."""
    at = bisect.bisect_left(values, True, key=holds)
    return values[at] if at < len(values) else None


def header(options: Compile, step: aot.Step, chip: Chip, name: str) -> Iterator[str]:
    c, model, mesh = step.trainer, step.model, step.mesh
    n = count(decoder.abstract_params(model))
    shown = f", {step.patches:,} places for patches of an image" if step.patches else ""
    yield f"{name} on {options.topology}: {mesh.size} devices, mesh {dict(mesh.shape)}"
    yield f"parameters   {n:,} in {model.param_dtype}, products in {model.dtype}, remat {model.remat}"
    yield (
        f"batch        {step.samples:,} samples: {step.rows:,} rows of {step.length:,} tokens, "
        f"{c.grpo.minibatches} update(s) of {c.grpo.accumulate} piece(s); prompts of {step.prompt:,} "
        f"tokens{shown}, {c.max_new_tokens:,} new ones"
    )
    yield (
        f"sampler      {step.slots:,} slots of {step.capacity:,} places, filled {step.refills} "
        f"time(s), chunks of {step.chunk}"
    )
    links = roofline.link_rate(chip, mesh.size)
    yield (
        f"chip         {chip.name}: {gib(chip.hbm)} a device, {chip.flops / 1e12:.0f} bfloat16 "
        f"TFLOP/s, {chip.bandwidth / 1e9:.0f} GB/s of memory, {links / 1e9:.0f} GB/s of links"
    )
    yield f"             {chip.source}"
    held = roofline.held(step)
    yield (
        f"memory       a device, exactly: parameters {gib(held.parameters)} (those trained, and those "
        f"begun with), optimiser {gib(held.optimiser)}, gradients {gib(held.gradients)}, the sampler's "
        f"cast {gib(held.cast)}, cache {gib(held.cache)}"
    )


def program_lines(done: aot.Compiled, chip: Chip) -> Iterator[str]:
    name, fits = done.program.name, done.needs <= chip.hbm
    yield (
        f"{name:<13}{gib(done.needs)} of {gib(chip.hbm)}{'' if fits else '  DOES NOT FIT'}"
        f"  [compiled in {done.seconds:.0f} s]"
    )
    if done.memory is None:
        return
    m = done.memory
    yield (
        f"             arguments {gib(m.arguments)}, outputs {gib(m.outputs)}, activations and other "
        f"temporaries {gib(m.temporary)}, code {gib(m.code)}, held beside it "
        f"{gib(done.program.resident)}"
    )
    calls = "token" if name == "decode" else "call"
    for kind, t in done.traffic.items():
        yield (
            f"             {kind}: {t.count:,} a {calls}, of {size(t.payload)}; a device sends "
            f"{size(t.sent)}"
        )


def times_a_step(step: aot.Step, done: aot.Compiled) -> float:
    """How often a step runs what `done.traffic` is of."""
    if done.program.name == "decode":
        return done.program.calls * step.chunk
    return done.program.calls


def timed(
    step: aot.Step, chip: Chip, done: Sequence[aot.Compiled]
) -> dict[str, tuple[roofline.Work, roofline.Times]]:
    """Each program's work and times in a step; what was not compiled sends what the analysis says."""
    sent = {
        d.program.name: times_a_step(step, d) * sum(t.sent for t in d.traffic.values())
        for d in done
        if d.memory
    }
    return {
        name: (work, roofline.times(work, chip, step.mesh.size, sent.get(name)))
        for name, work in roofline.works(step).items()
    }


def summary(step: aot.Step, chip: Chip, done: Sequence[aot.Compiled]) -> Iterator[str]:
    columns = ("FLOPs", "model", "compute", "memory", "links", "bound")
    yield f"{'a step':<10}" + "".join(f"{column:>11}" for column in columns)
    parts = timed(step, chip, done)
    for name, (work, t) in parts.items():
        seconds = (t.compute, t.memory, t.links, t.bound)
        yield (
            f"{name:<10}{work.flops:>11.2e}{work.model_flops:>11.2e}"
            + "".join(f"{s:>9.2f} s" for s in seconds)
        )
    seconds, asked = bounds(parts)
    peak = step.mesh.size * chip.flops
    update = parts["update"]
    yield (
        f"step         at least {seconds:.1f} s, if every sample runs to the limit: {asked:.2e} model "
        f"FLOPs, MFU at most {asked / seconds / peak:.0%}; of the update alone "
        f"{update[0].model_flops / update[1].bound / peak:.0%}"
    )


def bounds(parts: dict[str, tuple[roofline.Work, roofline.Times]]) -> tuple[float, float]:
    """(seconds, model FLOPs) of a step."""
    return sum(t.bound for _, t in parts.values()), sum(w.model_flops for w, _ in parts.values())


def refuse(needs: dict[str, int], step: aot.Step, chip: Chip) -> None:
    """UserError if a program needs more than there is, with what would make it smaller."""
    over = {name: n for name, n in needs.items() if n > chip.hbm}
    if over:
        worst = max(over, key=over.__getitem__)
        raise UserError(
            f"{worst} does not fit: needs {gib(over[worst])} of {gib(chip.hbm)} a device. Try "
            f"{', or '.join(remedies(step, worst))}."
        )


def remedies(step: aot.Step, program: str) -> list[str]:
    """Options that would make `program` smaller, of those that this step has not used up."""
    c, model, mesh = step.trainer, step.model, step.mesh
    tried: list[str] = []
    if program in ("update", "score"):
        most = step.rows // step.ways // c.grpo.minibatches
        more = [n for n in range(c.grpo.accumulate + 1, most + 1) if most % n == 0]
        if more:
            tried.append(f"--trainer.grpo.accumulate {more[0]} (up to {more[-1]})")
        if model.remat != "full" and program == "update":
            tried.append(f"--policy.remat {'full' if model.remat == 'dots' else 'dots, then full'}")
        if c.shared_prompt > 1:
            tried.append("--trainer.shared-prompt 1")
        if c.grpo.logprob_chunk > 256:
            tried.append("--trainer.grpo.logprob-chunk 256")
    elif program != "encode" and step.slots > step.ways:
        tried.append(f"--trainer.rollout.slots {step.rounded(step.slots // 2)}")
    split = mesh.shape["tensor"] * 2
    if model.n_kv_heads % split == 0 and step.ways % 2 == 0:
        fsdp = max(mesh.shape["fsdp"] // 2, 1)
        tried.append(f"--mesh.fsdp {fsdp} --mesh.tensor {split}")
    if mesh.shape["data"] > 1:
        tried.append(f"--mesh.data 1 --mesh.fsdp {mesh.shape['data'] * mesh.shape['fsdp']}")
    if not model.lora.rank:
        tried.append("--trainer.lora.rank 64 --policy.param-dtype bfloat16")
    tried.append("more chips")
    return tried


def figures(
    options: Compile, step: aot.Step, chip: Chip, name: str, done: Sequence[aot.Compiled]
) -> dict[str, Any]:
    """What docs/scale.py makes its table from."""
    compiled = {d.program.name: d for d in done}
    programs: dict[str, Any] = {}
    for part, (work, t) in timed(step, chip, done).items():
        told = {"flops": work.flops, "model_flops": work.model_flops, **asdict(t)}
        if part in compiled:
            d = compiled[part]
            n = times_a_step(step, d)
            told |= {
                "needs": d.needs,
                "temporary": d.memory.temporary if d.memory else None,
                "sent": {kind: n * t.sent for kind, t in d.traffic.items()},
                "compile_seconds": round(d.seconds),
            }
        programs[part] = told
    return {
        "recipe": name,
        "topology": options.topology,
        "typed": sys.argv[1:],
        "jax": jax.__version__,
        "devices": step.mesh.size,
        "mesh": dict(step.mesh.shape),
        "hbm": chip.hbm,
        "peak": chip.flops,
        "held": asdict(roofline.held(step)),
        "programs": programs,
    }


def gib(n: float) -> str:
    return f"{n / GIB:.2f} GiB"


def size(n: float) -> str:
    return f"{n / GIB:.2f} GiB" if n >= GIB / 10 else f"{n / 2**20:.2f} MiB"


def say(lines: Iterator[str]) -> None:
    for line in lines:
        print(line, flush=True)
