"""Machines of a test: processes with a network, a host name and mounts of their own (Linux namespaces; needs root).

The first is a server, and a bridge joins the others to it.
"""

import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

NET = "10.77.{number}.{host}"


class Machines:
    """A server and others, each named by its host name; `close` ends them with all that runs on them."""

    def __init__(self, folder, names):
        self.folder, self._number = folder, os.getpid() % 250
        self._holders, self._started = {}, []
        for name in ("server", *names):
            alone = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
            streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
            self._holders[name] = subprocess.Popen([*alone, "sleep", "1000"], **streams)
        time.sleep(0.3)
        try:
            self._join(names)
        except BaseException:
            self.close()
            raise

    def _join(self, names):
        for name in self._holders:
            self.on(name, "hostname", name)
            (self.folder / f"{name}.boot").write_text(f"boot of {name}\n")
            self.on(name, "mount", "--bind", self.folder / f"{name}.boot", "/proc/sys/kernel/random/boot_id")
            self.on(name, "ip", "link", "set", "lo", "up")
        self.on("server", "ip", "link", "add", "bridge", "type", "bridge")
        self.on("server", "ip", "addr", "add", f"{self.server}/24", "dev", "bridge")
        self.on("server", "ip", "link", "set", "bridge", "up")
        for host, name in enumerate(names, 2):
            inside = str(self._sleeper(name))
            wire = ["ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth", "netns", inside]
            here = ["nsenter", "--target", str(self._sleeper("server")), "--net"]  # it knows our process ids
            subprocess.run([*here, *wire], check=True)
            self.on("server", "ip", "link", "set", f"to-{name}", "master", "bridge", "up")
            address = NET.format(number=self._number, host=host)
            self.on(name, "ip", "addr", "add", f"{address}/24", "dev", "eth")
            self.on(name, "ip", "link", "set", "eth", "up")

    @property
    def server(self):
        """The server's address."""
        return NET.format(number=self._number, host=1)

    def _sleeper(self, name):
        """The process inside the namespaces: the child of the one that made them."""
        holder = self._holders[name].pid
        return int(Path(f"/proc/{holder}/task/{holder}/children").read_text().split()[0])

    def _entered(self, name, words):
        inside = str(self._sleeper(name))
        return ["nsenter", "--target", inside, "--net", "--mount", "--uts", "--pid", "--wdns=/", *map(str, words)]

    def on(self, name, *words, check=True, **more):
        """Run a command there; its output."""
        log = self.folder / f"{name}.log"
        with log.open("w+") as out:  # a file: daemons would keep a pipe open
            done = subprocess.run(
                self._entered(name, words), stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=120, **more
            )
        text = log.read_text()
        assert not check or done.returncode == 0, (words, text[-2000:])
        return text

    def start(self, name, *words):
        """Start a command there."""
        log = (self.folder / f"{name}-started.log").open("w")
        with log:
            given = subprocess.DEVNULL
            self._started.append(subprocess.Popen(self._entered(name, words), stdin=given, stdout=log, stderr=log))

    def cut_off(self, name, is_cut=True):
        """Take a machine off the network, or back."""
        self.on("server", "ip", "link", "set", f"to-{name}", "down" if is_cut else "up")

    def close(self):
        """End all machines."""
        for holder in self._holders.values():
            with suppress(OSError, IndexError):
                holder.kill()  # its child ends with it, and with that one all in its process namespace
        for process in (*self._started, *self._holders.values()):
            process.wait(30)


def shared_by_gluster(machines, folder, names):
    """Mount one GlusterFS volume on each machine at `folder`; needs the packages glusterfs-server and -client."""
    for private in ("/var/lib/glusterd", "/var/log/glusterfs", "/run"):
        Path(private).mkdir(parents=True, exist_ok=True)
        for name in ("server", *names):
            machines.on(name, "mount", "-t", "tmpfs", "tmpfs", private)
    brick = machines.folder / "brick"
    brick.mkdir()
    machines.on("server", "glusterd")
    volume = f"{machines.server}:{brick}"
    for _ in range(20):
        time.sleep(0.5)
        if "success" in machines.on("server", "gluster", "volume", "create", "home", volume, "force", check=False):
            break
    machines.on("server", "gluster", "volume", "set", "home", "network.ping-timeout", "5")
    machines.on("server", "gluster", "volume", "start", "home")
    for name in names:
        machines.on(name, "mount", "-t", "glusterfs", f"{machines.server}:/home", folder)


def shared_by_sshfs(machines, folder, names):
    """Mount one folder of the server on each machine at `folder` by SSH; needs sshfs and openssh-server."""
    key, host_key = machines.folder / "key", machines.folder / "host-key"
    for file in (key, host_key):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file], check=True)
    stored = machines.folder / "stored"
    stored.mkdir()
    Path("/run/sshd").mkdir(exist_ok=True)
    options = [f"HostKey={host_key}", f"AuthorizedKeysFile={key}.pub", "StrictModes=no", "UsePAM=no", "PidFile=none"]
    sftp = ["-o", "Subsystem=sftp internal-sftp", "-o", f"ListenAddress={machines.server}"]
    machines.on("server", shutil.which("sshd") or "/usr/sbin/sshd", "-f", "/dev/null", *_each(options), *sftp)
    how = [f"IdentityFile={key}", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"]
    for name in names:
        machines.on(name, "sshfs", f"{machines.server}:{stored}", folder, *_each(how))


def _each(options):
    return [word for option in options for word in ("-o", option)]


def need_programs(*names):
    """Skip the test unless it may make machines and these programs are installed."""
    missing = [name for name in ("unshare", "nsenter", "ip", *names) if not shutil.which(name, path=PATH)]
    if missing or os.geteuid():
        pytest.skip(f"needs root and {', '.join(missing) or 'no more'}")


PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
