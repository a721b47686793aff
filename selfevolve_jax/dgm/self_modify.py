"""The proposer that is driven by models: diagnosis, then the maker's own code rewrites the parent.

The child is refused where it is no agent that could be evaluated; whether it is a good one, the
evaluation says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from selfevolve_jax.dgm import coding, diagnosis, hacking
from selfevolve_jax.dgm.coding import cut
from selfevolve_jax.dgm.contract import Benchmark, Models, Parent, Proposal, Task, Tree, run_job
from selfevolve_jax.dgm.first_agent import ENTRY_POINT
from selfevolve_jax.dgm.sandbox import pythons
from selfevolve_jax.dgm.sandbox.job import Box, Job, Limits
from selfevolve_jax.errors import UserError

LIMITS = Limits(wall_s=1800.0, cpu_s=1800.0, memory_mib=1024, processes=128)
CHECK_LIMITS = Limits(wall_s=60.0, cpu_s=30.0, memory_mib=512)
MAX_FILE_BYTES = 256 << 10  # as agent/README.md says
MAX_TREE_BYTES = 1 << 20
MAX_FILES = 500

PROBLEM = """\
The repository is the source code of a coding agent: a program that solves programming tasks with a
language model and with tools. Its README.md says how it is put together, run and scored. Improve it as
described below. Keep its command line, keep it to Python's standard library, and check at the end that
`python3 coding_agent.py --help` works and that its own tests pass.

# What to change

{problem}

# How it could be done

{suggestion}
"""


@dataclass(frozen=True)
class SelfModification:
    """contract.Proposer. private_tests: as in diagnosis.diagnose. limits: of the run that rewrites."""

    benchmark: Benchmark
    limits: Limits = LIMITS
    private_tests: Callable[[Task], str] | None = None

    def propose(self, parent: Parent, seed: int, box: Box, models: Models | None) -> Proposal:
        if models is None:
            raise UserError(
                "self-modification needs a model, and the run has none. "
                "Fix: name an endpoint for the roles coding and diagnosis."
            )
        entry = diagnosis.choose_entry(parent.attempts, seed)
        found = diagnosis.diagnose(parent, entry, self.benchmark, models, self.private_tests)
        failed = Proposal(None, found.reason, entry.name, raw=found.raw, usage=found.usage)
        if found.diagnosis is None:
            return failed
        attempted = coding.solve(
            parent.maker,
            PROBLEM.format(
                problem=found.diagnosis.problem_description,
                suggestion=found.diagnosis.implementation_suggestion,
            ),
            parent.tree,
            box,
            models,
            self.limits,
            purpose=f"self-modification of agent {parent.id}",
        )
        made = dataclasses.replace(
            failed,
            diagnosis=as_text(found.diagnosis),
            log=attempted.log,
            usage=found.usage + attempted.usage,
        )
        reason = refusal(parent.tree, attempted.repo, attempted.refused, box)
        if reason or attempted.repo is None:
            if attempted.reason and not attempted.refused:
                reason += f" (the maker's run: {attempted.reason})"
            return dataclasses.replace(made, reason=reason)
        flags = hacking.flags(parent.tree, attempted.repo)
        return dataclasses.replace(made, tree=attempted.repo, reason="", flags=flags)


def as_text(found: diagnosis.Diagnosis) -> str:
    """Each field under its name."""
    return "\n\n".join(f"{name}:\n{text}" for name, text in dataclasses.asdict(found).items())


def refusal(parent: Tree, child: Tree | None, refused: Sequence[tuple[str, str]], box: Box) -> str:
    """Why child is no agent that could be evaluated, or ""."""
    if child is None:
        return "nothing could be copied out of the sandbox"
    if refused:
        named = ", ".join(f"{path} ({why})" for path, why in refused[:5])
        return f"files that an agent may not hold: {named}"
    return unfit(parent, child) or does_not_start(child, box)


def unfit(parent: Tree, child: Tree) -> str:
    """What can be said without running it."""
    if dict(child) == dict(parent):
        return "empty change: the agent left its code as it was"
    if ENTRY_POINT not in child:
        return f"{ENTRY_POINT} is gone"
    if len(child) > MAX_FILES:
        return f"{len(child)} files; at most {MAX_FILES} are kept"
    total = sum(map(len, child.values()))
    if total > MAX_TREE_BYTES:
        return f"{total} bytes in all; at most {MAX_TREE_BYTES} are kept"
    for path, data in child.items():
        if len(data) > MAX_FILE_BYTES:
            return f"{path} has {len(data)} bytes; at most {MAX_FILE_BYTES} are kept"
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            return f"{path} is not text"
        if "\0" in text:
            return f"{path} is not text"
    return ""


def does_not_start(child: Tree, box: Box) -> str:
    """Compiles every .py file, and asks the agent for its --help, each in a sandbox without a model."""
    files = {f"agent/{path}": data for path, data in child.items()}
    sources = tuple(sorted(path for path in files if path.endswith(".py")))
    python, mounts = pythons.python(box)
    checks = {
        "does not compile": ("-m", "py_compile", *sources),
        "does not start": (f"agent/{ENTRY_POINT}", "--help"),
    }
    for what, arguments in checks.items():
        env = {"PYTHONPYCACHEPREFIX": "/tmp/cache"}
        job = Job((*python, *arguments), files, mounts, env, limits=CHECK_LIMITS)
        outcome = run_job(box, job)
        if ended := coding.how_it_ended(outcome):
            said = (outcome.stderr or outcome.stdout).decode("utf-8", "replace").strip()
            return f"{what}: {ended[0]}: {cut(said, 2000)}"
    return ""
