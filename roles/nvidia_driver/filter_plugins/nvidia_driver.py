"""Decides which NVIDIA driver and which CUDA wheels a host gets.

It goes by what is in the host, what its distribution offers, what the site wants and which wheels there are.

The facts are data: tables of generations, offers and packages in this role's vars. This file only compares them.
"""

from __future__ import annotations

import re
from typing import Any

Facts = dict[str, Any]
# NVIDIA's own default since 560; before, open modules were meant for data center GPUs first.
OPEN_IS_DEFAULT_SINCE = 560
OPEN_SINCE = 515
PROPRIETARY_UNTIL = 615


class Refused(Exception):
    """This host cannot have a driver that works: ``code`` names the reason, ``what_to_do`` says how it could."""

    def __init__(self, code: str, message: str, what_to_do: str) -> None:
        super().__init__(message)
        self.code = code
        self.what_to_do = what_to_do

    def told(self) -> Facts:
        """The three as the role's messages have them."""
        return {"code": self.code, "message": str(self), "what_to_do": self.what_to_do}


def decide(host: Facts, site: Facts, cuda: Facts, tables: Facts) -> Facts:
    """What is to be done on a host, as ``action``: none, keep, install or refuse.

    ``host``: os_id, os_version, nvidia_gpus (``[{address, device}]``, device as four hexadecimal digits) and what the
    role's probe prints. ``site``: install, replace, branch, flavour, source. ``cuda``: runtime, least_driver,
    architectures, ptx, or empty. ``install`` comes with branch, flavour, source, packages, headers, pinned (whether
    the packages are kept at their version), automatic (those that may go with the kernel that they are for) and the
    offer; ``refuse`` with code, message and what_to_do.
    """
    if not host["nvidia_gpus"]:
        return {"action": "none", "gpus": [], "message": "no NVIDIA GPU"}
    gpus = identify(host["nvidia_gpus"], tables["generations"])
    try:
        return {**_decide(host, site, cuda, tables, gpus), "gpus": gpus}
    except Refused as refused:
        return {"action": "refuse", **refused.told(), "gpus": gpus}


def choose(built: list[Facts], host: Facts, site: Facts, tables: Facts) -> Facts:
    """Which of the CUDA wheels that were ``built`` (their manifests) a host gets, as ``wheels``.

    Those with code for all its GPUs and with a driver that is there or can be had; of these the newest CUDA, unless the
    driver that runs now is good for an older one only. Where no driver can be had for any, the one that is wanted most:
    ``decide`` says then why. Where a GPU finds no code it is None, with ``code``, ``message`` and ``what_to_do``.
    """
    gpus = identify(host["nvidia_gpus"], tables["generations"])
    fit = [one for one in built if not _without_code(one["cuda"], gpus)]
    if fit:
        return {
            "wheels": min(fit, key=lambda one: _rank(one["cuda"], decide(host, site, one["cuda"], tables), host, gpus))
        }
    whatever = decide(host, site, {}, tables)
    if whatever.get("code") in {"gpu_mix", "no_driver_for_gpu"}:
        return {"wheels": None, **{key: whatever[key] for key in ("code", "message", "what_to_do")}}
    kinds = [one["cuda"] for one in built]
    lacking = [gpu for gpu in gpus if all(gpu in _without_code(cuda, gpus) for cuda in kinds)]
    return {"wheels": None, **_not_in_wheels(kinds, lacking or gpus, gpus).told()}


def identify(gpus: list[Facts], generations: list[Facts]) -> list[Facts]:
    """The GPUs with what the table of generations says of each, and with ``compute`` "" where it is in no range."""
    return [_identified(gpu, generations) for gpu in gpus]


def driven_together(gpus: list[Facts]) -> bool:
    """Whether there is a branch that drives all of these, of ``identify``, with one kind of kernel modules."""
    branches = {OPEN_SINCE, PROPRIETARY_UNTIL} | {gpu[end] for gpu in gpus for end in ("since", "last")}
    return any(
        all(kind in _flavours(gpu, branch) for gpu in gpus) for branch in branches for kind in ("open", "proprietary")
    )


def _decide(host: Facts, site: Facts, cuda: Facts, tables: Facts, gpus: list[Facts]) -> Facts:
    if cuda and (lacking := _without_code(cuda, gpus)):
        raise _not_in_wheels([cuda], lacking, gpus)
    works = _driver_that_works(host, site, cuda, gpus)
    if works and not (host["ours"] and site["install"]):
        return works
    if not site["install"]:
        raise _why_not_as_it_is(host, cuda, gpus)
    _refuse_to_touch_what_others_installed(host, site, cuda, gpus)
    _refuse_to_guess(site, gpus)
    distribution = tables["rebuilds"].get(host["os_id"], host["os_id"])
    offer, flavour = _first_that_drives_all(_offers(host, site, tables, distribution), site, cuda, gpus)
    if host["secure_boot"] and not offer.get("signed") and not host["signing_key_enrolled"]:
        raise Refused(
            "secure_boot",
            "the host boots with Secure Boot on; its kernel takes no module that is built on the host until the key "
            "that signs it is enrolled, which needs the console.",
            _secure_boot_steps(host),
        )
    names = tables["packages"][f"{distribution}-{offer['source']}"][flavour]
    packages = [filled for name in names for filled in _filled(name, offer["branch"], host)]
    built = bool(offer.get("signed"))
    return {
        "action": "install",
        "branch": offer["branch"],
        "flavour": flavour,
        "source": offer["source"],
        "packages": packages,
        "headers": [] if built else _headers(distribution, host),
        "pinned": not built,
        "automatic": [name for name in packages if built and host["images"] and name.endswith(f"-{host['kernel']}")],
        "offer": offer,
        "message": f"driver branch {offer['branch']} with {flavour} kernel modules from "
        + ("the distribution" if offer["source"] == "distribution" else "NVIDIA's repository")
        + f" ({', '.join(packages)})"
        + (", with a reboot where nouveau cannot be unloaded" if host["nouveau"] else ""),
    }


def _identified(gpu: Facts, generations: list[Facts]) -> Facts:
    """The GPU with its generation's facts; without any where its id is in no range."""
    device = int(gpu["device"], 16)
    for generation in generations:
        for ids in generation["ids"]:
            first, last = (int(part, 16) for part in ids.split("-"))
            if first <= device <= last:
                facts = {key: generation[key] for key in ("name", "compute", "since", "last", "modules")}
                return {**gpu, **facts, "label": f"{gpu['address']} (10de:{gpu['device']}, {generation['name']})"}
    # What is newer than the table is driven by the newest branches and by open modules, if by any.
    unknown = {"name": "unknown", "compute": "", "since": 0, "last": 0, "modules": ["open"]}
    return {**gpu, **unknown, "label": f"{gpu['address']} (10de:{gpu['device']}, not in the table)"}


def _without_code(cuda: Facts, gpus: list[Facts]) -> list[Facts]:
    return [gpu for gpu in gpus if not _runs_on(gpu["compute"], cuda["architectures"], cuda.get("ptx", []))]


def _not_in_wheels(built: list[Facts], lacking: list[Facts], gpus: list[Facts]) -> Refused:
    has = " and ".join(f"{gpu['label']} has compute capability {gpu['compute']}" for gpu in lacking)
    there = "; ".join(f"{', '.join(map(str, cuda['architectures']))} with CUDA {cuda['runtime']}" for cuda in built)
    wanted = sorted({_number(gpu["compute"]) for gpu in gpus if gpu["compute"]})
    return Refused(
        "gpu_not_in_wheels",
        f"GPU {has}, and no CUDA wheels on the controller have code for {'all of them' if len(lacking) > 1 else 'it'}; "
        f"they were built for {there}.",
        "Run `make wheelhouse-cuda` in the checkout there (for such a host alone: `make "
        f'wheelhouse-cuda CUDA_FLAGS="--architectures {";".join(f"{one}-real" for one in wanted)}"`), or set '
        "hive_cuda: false.",
    )


def _rank(cuda: Facts, plan: Facts, host: Facts, gpus: list[Facts]) -> tuple[Any, ...]:
    """What is wanted most sorts first."""
    loaded = (_branch(host["loaded"]), host["loaded_flavour"]) if host.get("loaded") else None
    moves = loaded not in (None, (plan.get("branch"), plan.get("flavour")))
    distances = [_distance(gpu["compute"], cuda) for gpu in gpus]
    # To compile PTX takes minutes at each GPU's first start.
    compiles = 2 in distances
    size = len(cuda["architectures"]) + len(cuda.get("ptx", []))
    newest = [-number for number in _numbers(cuda["runtime"])]
    # A host that is to get its GPU later gets what most GPUs can use.
    return (plan["action"] == "refuse", moves, compiles, newest, sum(distances), size if gpus else -size)


def _distance(compute: str, cuda: Facts) -> int:
    """0 for a GPU's own machine code, 1 for that of another of its generation, 2 for PTX."""
    built = {str(one).removesuffix("a") for one in cuda["architectures"]}
    if not compute:
        return 0 if cuda.get("ptx") else 2
    if str(_number(compute)) in built:
        return 0
    return 1 if _runs_on(compute, cuda["architectures"], []) else 2


def _refuse_to_touch_what_others_installed(host: Facts, site: Facts, cuda: Facts, gpus: list[Facts]) -> None:
    why = _why_not(host, cuda, gpus)
    if host["installer"]:
        raise Refused(
            "driver_of_installer",
            f"a driver that NVIDIA's .run installer left there does not do: {why} Packages cannot replace it.",
            "Run nvidia-uninstall on the host.",
        )
    if host["ours"] or site["replace"] or not (host["loaded"] or host["module_packages"]):
        return
    there = ", ".join(host["module_packages"]) or f"driver {host['loaded']}"
    raise Refused(
        "driver_of_others",
        f"a driver that this role did not install is there and does not do ({there}): {why} To replace it could take "
        "away what was installed with it: a desktop, NVIDIA's Fabric Manager.",
        "Bring it to work or up to date in the way in which it came, or remove it there, and run again; or set "
        "nvidia_driver_replace: true to have it replaced.",
    )


def _refuse_to_guess(site: Facts, gpus: list[Facts]) -> None:
    for gpu in gpus:
        if gpu["name"] == "unknown" and not (site["branch"] and site["flavour"] != "auto"):
            raise Refused(
                "gpu_unknown",
                f"GPU {gpu['label']} is of no generation that this version knows.",
                "Set nvidia_driver_branch and nvidia_driver_flavour to what NVIDIA names for it, or hive_cuda: false "
                "for a hive on the processor.",
            )


def _runs_on(compute: str, architectures: list[Any], ptx: list[Any]) -> bool:
    """Whether code for one of the architectures ("75", "120a") runs.

    That is of the same major version and no newer minor one, or with an "a" of exactly this. PTX of an older one does
    as well: the driver compiles it.
    """
    if not compute:
        return True
    own = _number(compute)
    return any(_is_code_for(own, str(built)) for built in architectures) or any(int(built) <= own for built in ptx)


def _is_code_for(own: int, built: str) -> bool:
    if built.endswith("a"):
        return int(built[:-1]) == own
    return int(built) // 10 == own // 10 and int(built) <= own


def _driver_that_works(host: Facts, site: Facts, cuda: Facts, gpus: list[Facts]) -> Facts | None:
    """A driver that is loaded and does all that is asked is left as it is."""
    version, flavour = host["loaded"], host["loaded_flavour"]
    if not version or _why_it_fails(version, flavour, cuda, gpus):
        return None
    if site["branch"] not in (0, _branch(version)) or site["flavour"] not in ("auto", flavour):
        return None
    return {
        "action": "keep",
        "branch": _branch(version),
        "flavour": flavour,
        "source": "",
        "packages": [],
        "headers": [],
        "message": f"the driver {version} that is there does; it is left as it is",
    }


def _why_it_fails(version: str, flavour: str, cuda: Facts, gpus: list[Facts]) -> str:
    if cuda and _numbers(version) < _numbers(cuda["least_driver"]):
        return f"CUDA {cuda['runtime']} of the wheels needs driver {cuda['least_driver']}, this is {version}."
    for gpu in gpus:
        # Of a GPU newer than the table only the agent can say, later, whether the driver that is there drives it.
        if gpu["name"] != "unknown" and flavour not in _flavours(gpu, _branch(version)):
            return f"Driver {version} with {flavour} kernel modules does not drive GPU {gpu['label']}."
    return ""


def _why_not(host: Facts, cuda: Facts, gpus: list[Facts]) -> str:
    """Why the driver that is there does not do."""
    version = host["loaded"]
    if not version:
        return "No NVIDIA driver is loaded."
    why = _why_it_fails(version, host["loaded_flavour"], cuda, gpus)
    return why or f"Driver {version} is there, nvidia_driver_branch or nvidia_driver_flavour asks for another."


def _why_not_as_it_is(host: Facts, cuda: Facts, gpus: list[Facts]) -> Refused:
    why = _why_not(host, cuda, gpus)
    what = f"{why} nvidia_driver_install is false."
    fix = "Install one that does on the host, or set nvidia_driver_install: true."
    if not host["loaded"]:
        return Refused("no_driver", what, fix)
    return Refused("driver_too_old" if "needs driver" in why else "driver_does_not_fit", what, fix)


def _offers(host: Facts, site: Facts, tables: Facts, distribution: str) -> list[Facts]:
    """What this host could install, as far as the site lets it choose."""
    release = str(host["os_version"])
    known = tables["offers"].get(f"{distribution}-{release}") or tables["offers"].get(
        f"{distribution}-{release.partition('.')[0]}", []
    )
    offers = [offer for offer in known if site["source"] in ("auto", offer["source"])]
    if site["branch"]:
        offers = [_with_branch(offer, site["branch"]) for offer in offers if _has_branch(offer, site["branch"])]
    if not offers:
        raise Refused(
            "no_such_driver",
            f"{distribution} {release} has no driver branch {site['branch'] or 'at all'} from source {site['source']}; "
            f"known are {'; '.join(_named(offer) for offer in known) or 'none'}.",
            "Change nvidia_driver_branch or nvidia_driver_source.",
        )
    return offers


def _has_branch(offer: Facts, branch: int) -> bool:
    # A release of a distribution has one branch; NVIDIA's repositories have all since some first one, as far as their
    # packages are named as the table has it.
    if offer["source"] == "distribution":
        return branch == offer["branch"]
    return offer.get("since", offer["branch"]) <= branch <= offer.get("last", branch)


def _with_branch(offer: Facts, branch: int) -> Facts:
    return {**offer, "branch": branch}


def _named(offer: Facts) -> str:
    return f"{offer['branch']} ({'its own' if offer['source'] == 'distribution' else 'NVIDIA'})"


def _first_that_drives_all(offers: list[Facts], site: Facts, cuda: Facts, gpus: list[Facts]) -> tuple[Facts, str]:
    """The first offer, with the flavour, that drives every GPU and the CUDA runtime."""
    reasons = []
    for offer in offers:
        branch = offer["branch"]
        if cuda and branch < _branch(cuda["least_driver"]):
            reasons.append(f"{_named(offer)}: CUDA {cuda['runtime']} needs driver {cuda['least_driver']}")
            continue
        undriven = [gpu["label"] for gpu in gpus if not _flavours(gpu, branch)]
        if undriven:
            reasons.append(f"{_named(offer)} does not drive {' and '.join(undriven)}")
            continue
        common = [name for name in _preferred(branch) if all(name in _flavours(gpu, branch) for gpu in gpus)]
        wanted = [name for name in common if site["flavour"] in ("auto", name)]
        if wanted:
            return offer, wanted[0]
        needs = "; ".join(f"{gpu['label']} needs {' or '.join(_flavours(gpu, branch))}" for gpu in gpus)
        reasons.append(f"{_named(offer)}: {needs} kernel modules, and a host can have but one kind" + _asked(site))
    raise Refused(
        "gpu_mix" if len({gpu["name"] for gpu in gpus}) > 1 else "no_driver_for_gpu",
        f"no driver that this host can install drives all of {', '.join(gpu['label'] for gpu in gpus)}. "
        f"Branch {'; branch '.join(reasons)}.",
        "Take a GPU out, set nvidia_driver_branch, nvidia_driver_flavour or nvidia_driver_source otherwise, or set "
        "hive_cuda: false for a hive on the processor.",
    )


def _asked(site: Facts) -> str:
    return "" if site["flavour"] == "auto" else f" (nvidia_driver_flavour is {site['flavour']})"


def _flavours(gpu: Facts, branch: int) -> list[str]:
    """The kernel modules of a branch that drive this GPU."""
    if branch < gpu["since"] or (gpu["last"] and branch > gpu["last"]):
        return []
    exists = {"open": branch >= OPEN_SINCE, "proprietary": branch <= PROPRIETARY_UNTIL}
    return [name for name in gpu["modules"] if exists[name]]


def _preferred(branch: int) -> list[str]:
    return ["open", "proprietary"] if branch >= OPEN_IS_DEFAULT_SINCE else ["proprietary", "open"]


def _secure_boot_steps(host: Facts) -> str:
    key = "/var/lib/shim-signed/mok/MOK.der" if host["os_id"] == "ubuntu" else "/var/lib/dkms/mok.pub"
    return (
        "On the host install dkms and mokutil, make the key with `dkms "
        f"generate_mok`, import it with `mokutil --import {key}` and a password of your choice, reboot and confirm it "
        "at the console. Or switch Secure Boot off in the firmware. Then run again."
    )


def _filled(name: str, branch: int, host: Facts) -> list[str]:
    """A package's names: {kernel} is the running one, {image} each package by which kernels are kept up to date."""
    name = name.replace("{branch}", str(branch)).replace("{kernel}", host["kernel"])
    return [name.replace("{image}", image) for image in _images(host)] if "{image}" in name else [name]


def _images(host: Facts) -> list[str]:
    # Ubuntu's virtual machines run its generic kernel; modules come by that name alone.
    return sorted({re.sub(r"^virtual\b", "generic", image) for image in host["images"]})


def _headers(distribution: str, host: Facts) -> list[str]:
    """Packages with what modules are built with: for the running kernel first, then for those that will follow it."""
    kernel = host["kernel"]
    if distribution == "rhel":
        return [_rhel_headers(kernel)]
    follow = _images(host) or [_kernel_flavour(kernel)]
    return [f"linux-headers-{name}" for name in (kernel, *follow)]


def _rhel_headers(kernel: str) -> str:
    """kernel-uek-devel of Oracle's own kernel, kernel-rt-devel of 5.14.0-570.el9.x86_64+rt."""
    version, _, variant = kernel.partition("+")
    variant = variant or ("uek" if "uek" in version else "")
    return f"kernel-{variant + '-' if variant else ''}devel-{version}"


def _kernel_flavour(kernel: str) -> str:
    """cloud-amd64 of 6.12.48+deb13-cloud-amd64, generic of 6.8.0-85-generic."""
    return re.sub(r"^.*[0-9]-(?=[a-z])", "", kernel)


def _number(compute: str) -> int:
    """86 of "8.6", as compilers write it."""
    return int(compute.replace(".", ""))


def _branch(version: str) -> int:
    return int(version.partition(".")[0])


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


class FilterModule:
    """What Ansible looks for in this file."""

    def filters(self) -> Facts:
        """Each of the functions above that has no underscore, by the name that tasks know."""
        return {
            "nvidia_driver_decision": decide,
            "nvidia_driver_choice": choose,
            "nvidia_driver_gpus": identify,
            "nvidia_driver_drives_all": driven_together,
        }
