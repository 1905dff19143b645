"""`python -m llama_orch.wheelhouse`: build the engine, wheelhouses and the CUDA add-on, show where they are."""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

from llama_orch.wheelhouse import cuda, cuda_fleet, cuda_house, engine_wheel, environment
from llama_orch.wheelhouse.engine import default_cache
from llama_orch.wheelhouse.engine_lock import engine_for
from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.house import DEFAULT_PYTHONS, PARTS, House, Project
from llama_orch.wheelhouse.locks import Target
from llama_orch.wheelhouse.pip import say


def _checkout() -> Path:
    """The checkout that this file stands in, or else the current folder."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "pyproject.toml").is_file() else Path.cwd()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llama_orch.wheelhouse", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build what is missing; print the folders")
    path = commands.add_parser("path", help="print the folder that playbooks push now")
    engine = commands.add_parser("engine", help="print the engine's wheel for every processor; build what is missing")
    release = commands.add_parser("engine-wheel", help="the same with the lowest manylinux tag, as a release has it")
    install = commands.add_parser("install", help="install the engine, locked packages and this checkout right here")
    add_on = commands.add_parser("build-cuda", help="build add-ons for hives with an NVIDIA GPU; print their folders")
    for command in (build, path, engine, release, install, add_on):
        command.add_argument("--project", type=Path, default=_checkout(), help="the checkout (default: this one)")
        command.add_argument("--cache", type=Path, default=default_cache(), help="kept wheels (default: %(default)s)")
    for command in (build, path, add_on):
        command.add_argument("--out", type=Path, help="the wheelhouse (default: wheelhouse/ in the checkout)")
    release.add_argument("--dist", type=Path, help="where the wheel goes (default: dist/ in the checkout)")
    install.add_argument("locks", nargs="+", metavar="LOCK", help="hive, queen or dev")
    install.add_argument("--every-processor", action="store_true", help="not just this machine's")
    build.add_argument("--python", action="append", help=f"target Python; repeatable (default: {DEFAULT_PYTHONS})")
    build.add_argument("--part", action="append", choices=PARTS, help="repeatable (default: both)")
    path.add_argument("--python", required=True, help="target Python, such as 3.11")
    path.add_argument("--part", choices=PARTS, default="hive")
    add_on.add_argument(
        "--nvcc",
        type=Path,
        help="this machine's nvcc, for what needs its CUDA (default: NVIDIA's wheels of CUDA 13)",
    )
    add_on.add_argument(
        "--architectures",
        metavar="LIST",
        help="GPU generations for one add-on, as CMAKE_CUDA_ARCHITECTURES, such as 86-real;89-real "
        "(default: ask the hosts of the inventory; an add-on for each set of GPUs that a host has)",
    )
    add_on.add_argument("--check", action="store_true", help="only say what would be compiled, and for whom")
    return parser


def _out(arguments: argparse.Namespace) -> Path:
    return (arguments.out or arguments.project / "wheelhouse").resolve()


def _house(arguments: argparse.Namespace, part: str, python: str) -> House:
    return House(Project(arguments.project.resolve()), part, Target(python), _out(arguments), arguments.cache)


def _run(arguments: argparse.Namespace) -> list[Path]:
    system = f"{platform.system()} {platform.machine()}"
    if system != "Linux x86_64":
        raise WheelhouseError(f"wheels are built on Linux on x86-64, this is {system}")
    project: Path = arguments.project.resolve()
    if arguments.command == "engine":
        return [engine_for(project, arguments.cache).wheel()]
    if arguments.command == "engine-wheel":
        return [engine_wheel.release(project, arguments.cache, arguments.dist or project / "dist")]
    if arguments.command == "install":
        environment.fill(project, arguments.cache, arguments.locks, every_processor=arguments.every_processor)
        return []
    if arguments.command == "build-cuda":
        return _build_cuda(arguments, project)
    if arguments.command == "build":
        targets = [(part, python) for part in arguments.part or PARTS for python in arguments.python or DEFAULT_PYTHONS]
        return [_house(arguments, part, python).content().build() for part, python in targets]
    pointer = _house(arguments, arguments.part, arguments.python).content().pointer()
    if not (pointer / "manifest.json").is_file():
        raise WheelhouseError(f"{pointer} is missing; build it with `make wheelhouse`")
    return [pointer.resolve()]


def _build_cuda(arguments: argparse.Namespace, project: Path) -> list[Path]:
    lacking: list[str] = []
    if arguments.architectures is None:
        wanted, lacking = cuda_fleet.backends(project, arguments.cache, arguments.nvcc)
    else:
        wanted = [cuda.backend(project, arguments.cache, arguments.nvcc, arguments.architectures)]
        say(wanted[0].told())
    built = [] if arguments.check else [cuda_house.build(one, _out(arguments)) for one in wanted]
    if built:
        # Hours may lie between this and the first time.
        for text in lacking:
            say(text)
    return built


def main(argv: list[str] | None = None) -> int:
    """Run the command and print the paths it ends in; answers the exit status, 0 when all is there."""
    arguments = _parser().parse_args(argv)
    try:
        paths = _run(arguments)
    except (WheelhouseError, OSError) as error:
        sys.stderr.write(f"wheelhouse: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nwheelhouse: stopped; what was compiled is kept\n")
        return 130
    sys.stdout.writelines(f"{path}\n" for path in paths)
    return 0


if __name__ == "__main__":
    sys.exit(main())
