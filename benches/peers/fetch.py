"""Gets peers into a cache: npm's packages are installed there, Debian's are unpacked there.

Nothing is installed into the system, and no service is enabled or started.
"""

import glob
import os
import shutil
import subprocess
from pathlib import Path


class Missing(Exception):
    """A server cannot be had on this machine; the message says what to do."""


def first_line(*command):
    """The first line that a command writes; empty where it does not run."""
    try:
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, timeout=20
        )
        return (done.stdout + done.stderr).strip().splitlines()[0] if done.returncode == 0 else ""
    except (OSError, IndexError, subprocess.TimeoutExpired):
        return ""


def check_runs(binary, flag):
    """Raises Missing with the libraries that are not there."""
    if first_line(binary, flag):
        return
    try:
        found = subprocess.run(["ldd", str(binary)], capture_output=True, text=True).stdout
    except OSError:
        found = ""
    absent = [line.split()[0] for line in found.splitlines() if "not found" in line]
    raise Missing(
        f"{Path(binary).name} does not run here"
        + (f": it needs {', '.join(absent)}" if absent else "")
    )


def npm_install(cache, package):
    if (cache / "node_modules" / package).exists():
        return
    for command in ("node", "npm"):
        if not shutil.which(command):
            raise Missing(
                f"'{command}' is missing: apt-get install --no-install-recommends nodejs npm"
            )
    print(f"installing {package} from npm into {cache}", flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / "package.json").exists():
        (cache / "package.json").write_text("{}")
    done = subprocess.run(
        ["npm", "install", "--silent", "--no-audit", "--no-fund", package],
        cwd=cache,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise Missing(f"npm install {package} fails: {last_line(done.stderr + done.stdout)}")


def unpacked(cache, *packages):
    """A folder with Debian's packages unpacked in it. No script of theirs is run."""
    where = cache / packages[0]
    if where.exists():
        return where
    for command in ("apt-get", "dpkg-deb"):
        if not shutil.which(command):
            raise Missing(f"'{command}' is missing: install {' '.join(packages)} yourself")
    print(f"unpacking {' and '.join(packages)} into {where}", flush=True)
    partly = cache / f"{packages[0]}.partly"
    shutil.rmtree(partly, ignore_errors=True)
    partly.mkdir(parents=True)
    download = ["apt-get", "download", "-qq", *packages]
    done = subprocess.run(download, cwd=partly, capture_output=True, text=True)
    if done.returncode != 0 and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-qq"], capture_output=True)
        done = subprocess.run(download, cwd=partly, capture_output=True, text=True)
    if done.returncode != 0:
        raise Missing(f"{' '.join(download)} fails: {last_line(done.stderr)}")
    for package in glob.glob(str(partly / "*.deb")):
        unpacking = subprocess.run(
            ["dpkg-deb", "-x", package, partly], capture_output=True, text=True
        )
        if unpacking.returncode != 0:
            raise Missing(f"dpkg-deb -x {Path(package).name} fails: {last_line(unpacking.stderr)}")
        os.unlink(package)
    partly.rename(where)
    return where


def last_line(text):
    lines = text.strip().splitlines()
    return lines[-1][:200] if lines else "it says nothing"
