"""The `selfevolve` command: parses what was typed, and turns mistakes into one clear message."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Before transformers is imported anywhere: it has no torch here, and says so at every start.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from launch.messages import complain
from selfevolve_jax import hosts
from selfevolve_jax.errors import UserError

USAGE = """selfevolve: models that improve themselves, in JAX

  selfevolve srt RECIPE [--option value ...]   train on the model's own majority vote
  selfevolve mm-upt RECIPE [--option value ..] the same for a vision-language model
  selfevolve ui-genie RECIPE [--option value ..] a GUI agent and its reward model raise each other
  selfevolve dgm RECIPE [--option value ...]   a coding agent rewrites its own code
  selfevolve agent-sft CHECKPOINT DATA --out D a GUI agent learns from demonstrations
  selfevolve android-control CHECKPOINT        a GUI agent's step accuracy on AndroidControl
  selfevolve android-world CHECKPOINT          its success on AndroidWorld's tasks, on emulators
  selfevolve evaluate CHECKPOINT               avg@k, maj@k, pass@k and greedy against gold
  selfevolve label CHECKPOINT --out DIR        pseudo-labels by the vote of a fixed checkpoint
  selfevolve synthesise CHECKPOINT --out DIR   new questions that the checkpoint writes about its images
  selfevolve generate CHECKPOINT --prompt ...  sample from a checkpoint
  selfevolve serve CHECKPOINT                  the same behind an OpenAI-compatible HTTP server
  selfevolve compile RECIPE --topology v5e:16x16  its step for a pod without one: memory, FLOPs, time
  selfevolve convert SRC DST                   Hugging Face or GGUF to a policy, and back
  selfevolve launch WHERE ... -- COMMAND ...   run a command on TPU VMs, GKE, SLURM or by SkyPilot
  selfevolve report RUN [RUN ...] [-o OUT]     one HTML page from run directories
  selfevolve bench [NAME ...]                  speed beside other projects and the machine's own
  selfevolve doctor                            what is installed, what is missing

Each command explains itself: selfevolve COMMAND --help. A RECIPE is a name, or FILE.py:NAME.
SRT's recipes: {srt}
MM-UPT's recipes: {mm_upt}
UI-Genie's recipes: {ui_genie}
DGM's recipes: {dgm}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; exits with 2 after a user's mistake, 1 after the disk's or the numbers'."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable[[list[str]], None]] = {
        "srt": _srt,
        "mm-upt": _mm_upt,
        "ui-genie": _ui_genie,
        "dgm": _dgm,
        "agent-sft": _agent_sft,
        "android-control": _android_control,
        "android-world": _android_world,
        "evaluate": _evaluate,
        "label": _label,
        "generate": _generate,
        "serve": _serve,
        "compile": _compile,
        "convert": _convert,
        "synthesise": _synthesise,
        "launch": _launch,
        "report": _report,
        "bench": _bench,
        "doctor": _doctor,
    }
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            systems = ("srt", "mm_upt", "ui_genie", "dgm")
            names = {s: _listed(_recipe_names(f"configs.{s}")) for s in systems}
            print(USAGE.format(**names), end="")
        elif arguments[0] not in commands:
            raise UserError(
                f"command {arguments[0]!r} is unknown; choose one of {', '.join(commands)}."
            )
        else:
            with hosts.telling():
                commands[arguments[0]](arguments[1:])
                hosts.leave()
        sys.stdout.flush()  # a pipe that nobody reads is found out here, and not at exit
    except UserError as error:
        if hosts.is_spokesman(str(error)):
            complain(str(error))
        hosts.end(error.exit_code)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        complain("interrupted")
        hosts.end(130)
        sys.exit(130)
    except BrokenPipeError:  # the reader has gone, as in `selfevolve doctor | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's exit flushes
        hosts.end(141)
        sys.exit(141)  # what a shell shows for SIGPIPE
    except Exception:
        if hosts.connected():  # Python's own end would wait for processes that are stuck
            traceback.print_exc()
            hosts.end(1)
        raise


def parse(kind: Any, arguments: list[str], prog: str, default: Any = None) -> Any:
    """tyro, with the mistakes that our own checks find as UserError."""
    import tyro

    options = {} if default is None else {"default": default}
    try:
        return tyro.cli(
            tyro.conf.AvoidSubcommands[kind], args=arguments, prog=f"selfevolve {prog}", **options
        )
    except ValueError as error:  # models/ knows no UserError
        raise UserError(str(error)) from error


def load_recipe(name: str, package: str) -> Any:
    """The dataclass that recipe `name` of `package` returns, or `path/to/file.py:name`."""
    path, colon, function = name.rpartition(":")
    if colon:
        if not Path(path).is_file():
            raise UserError(f"recipe file {path} does not exist (asked for as {name!r}).")
        spec = importlib.util.spec_from_file_location("selfevolve_recipe", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up by name
        spec.loader.exec_module(module)
        names = [n for n in vars(module) if not n.startswith("_") and callable(vars(module)[n])]
    else:
        module, function = importlib.import_module(package), name
        names = _recipe_names(package)
    if function not in names and function.replace("-", "_") not in names:
        shown = ", ".join(names) if colon else _listed(names)
        raise UserError(f"recipe {name!r} is unknown; choose one of {shown}, or FILE.py:NAME.")
    return getattr(module, function if function in names else function.replace("-", "_"))()


def _recipe_names(package: str) -> list[str]:
    """A recipe is a public function that the recipe module itself defines."""
    found = importlib.util.find_spec(package)
    assert found is not None and found.origin is not None
    lines = Path(found.origin).read_text().splitlines()  # without importing jax, for --help
    return [n[4 : n.index("(")] for n in lines if n.startswith("def ") and n[4] != "_"]


def _listed(names: list[str]) -> str:
    """Recipes as they are typed."""
    return ", ".join(name.replace("_", "-") for name in names)


def _srt(arguments: list[str]) -> None:
    if name := _recipe_typed(arguments, "srt", "configs.srt"):
        from launch.srt import Run, srt

        recipe = load_recipe(name, "configs.srt")
        srt(parse(Run, arguments[1:], f"srt {name}", Run(recipe)), name)


def _mm_upt(arguments: list[str]) -> None:
    if name := _recipe_typed(arguments, "mm-upt", "configs.mm_upt"):
        from launch.mm_upt import Run, mm_upt

        recipe = load_recipe(name, "configs.mm_upt")
        mm_upt(parse(Run, arguments[1:], f"mm-upt {name}", Run(recipe)), name)


def _ui_genie(arguments: list[str]) -> None:
    if name := _recipe_typed(arguments, "ui-genie", "configs.ui_genie"):
        from launch.ui_genie import Run, ui_genie

        recipe = load_recipe(name, "configs.ui_genie")
        ui_genie(parse(Run, arguments[1:], f"ui-genie {name}", Run(recipe)), name)


def _dgm(arguments: list[str]) -> None:
    if name := _recipe_typed(arguments, "dgm", "configs.dgm"):
        from launch.dgm import Run, dgm

        recipe = load_recipe(name, "configs.dgm")
        dgm(parse(Run, arguments[1:], f"dgm {name}", Run(recipe)), name)


def _agent_sft(arguments: list[str]) -> None:
    from launch.agent_sft import AgentSFT, train

    train(parse(AgentSFT, arguments, "agent-sft"))


def _android_control(arguments: list[str]) -> None:
    from launch.android_control import AndroidControl, evaluate

    evaluate(parse(AndroidControl, arguments, "android-control"))


def _android_world(arguments: list[str]) -> None:
    from launch.android_world import AndroidWorld, evaluate

    evaluate(parse(AndroidWorld, arguments, "android-world"))


def _recipe_typed(arguments: list[str], command: str, *packages: str) -> str | None:
    """The recipe's name; None where its list was asked for, which is printed."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0]
    names = _listed([name for package in packages for name in _recipe_names(package)])
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: selfevolve {command} RECIPE [OPTIONS]\nrecipes: {names}, or FILE.py:NAME")
        return None
    raise UserError(f"{command} needs a recipe: selfevolve {command} RECIPE. Recipes: {names}.")


def _evaluate(arguments: list[str]) -> None:
    from launch.evaluate import Evaluate, evaluate

    evaluate(_with_suite(Evaluate, arguments, "evaluate"))


def _label(arguments: list[str]) -> None:
    from launch.label import LabelRows, label

    label(_with_suite(LabelRows, arguments, "label"))


def _synthesise(arguments: list[str]) -> None:
    from launch.synthesise import Synthesise, synthesise

    synthesise(_with_suite(Synthesise, arguments, "synthesise"))


def _with_suite(kind: Any, arguments: list[str], prog: str) -> Any:
    """Options whose defaults are those of the suite that they name; what was typed still counts."""
    from dataclasses import replace

    from launch.problems import of_suite

    options = parse(kind, arguments, prog)
    preset = of_suite(options)
    return parse(kind, arguments, prog, replace(options, **preset)) if preset else options


def _generate(arguments: list[str]) -> None:
    from launch.generate import Generate, generate

    generate(parse(Generate, arguments, "generate"))


def _serve(arguments: list[str]) -> None:
    from launch.serve import Serve, serve

    serve(parse(Serve, arguments, "serve"))


def _compile(arguments: list[str]) -> None:
    if name := _recipe_typed(arguments, "compile", "configs.srt", "configs.mm_upt"):
        # Before jax: libtpu compiles, no TPU is looked for, and nothing is said of there being none.
        os.environ["JAX_PLATFORMS"] = "cpu"
        for variable, value in (
            *(("TPU_SKIP_MDS_QUERY", "1"), ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")),
            *(("TPU_ACCELERATOR_TYPE", "v5e-4"), ("TPU_WORKER_HOSTNAMES", "localhost")),
        ):
            os.environ.setdefault(variable, value)
        from launch.compile import Compile, compile

        compile(parse(Compile, arguments[1:], f"compile {name}", Compile(_either(name))), name)


def _either(name: str) -> Any:
    """SRT's or MM-UPT's recipe of that name, or FILE.py:NAME; srt/NAME, mm-upt/NAME if both have it."""
    packages = {"srt": "configs.srt", "mm-upt": "configs.mm_upt"}
    system, slash, own = name.partition("/")
    if ":" in name:
        return load_recipe(name, packages["srt"])
    if slash and system in packages:
        return load_recipe(own, packages[system])
    names = {s: _recipe_names(p) for s, p in packages.items()}
    have = [s for s, known in names.items() if name in known or name.replace("-", "_") in known]
    if len(have) > 1:
        both = " or ".join(f"{s}/{name}" for s in have)
        raise UserError(f"recipe {name!r} is of SRT and of MM-UPT: say {both}.")
    if not have:
        shown = "; ".join(f"{s}: {_listed(known)}" for s, known in names.items())
        raise UserError(f"recipe {name!r} is unknown; choose one of {shown}, or FILE.py:NAME.")
    return load_recipe(name, packages[have[0]])


def _convert(arguments: list[str]) -> None:
    from launch.convert import Convert, convert

    convert(parse(Convert, arguments, "convert"))


def _launch(arguments: list[str]) -> None:
    from launch.cluster.command import launch

    launch(arguments)


def _report(arguments: list[str]) -> None:
    from launch.report import Report, report

    report(parse(Report, arguments, "report"))


def _bench(arguments: list[str]) -> None:
    from launch.bench import Bench, bench

    bench(parse(Bench, arguments, "bench"))


def _doctor(arguments: list[str]) -> None:
    from launch.doctor import doctor

    if arguments in (["-h"], ["--help"]):
        print(
            "usage: selfevolve doctor\n\nWhat is installed, what is missing, and what it enables."
        )
        return
    if arguments:
        raise UserError(f"doctor takes no options, got {' '.join(arguments)}.")
    doctor()


if __name__ == "__main__":
    main()
