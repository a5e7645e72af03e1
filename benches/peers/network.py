"""The way from server to generator: loopback, or one on which senders do not pay for receivers.

Over loopback the sender's core runs the receiver's half of TCP as well. `veth` puts a pair of virtual
devices between two network namespaces and steers what arrives on the client's side to the generator's
cores, what arrives on the server's to the server's core, as two machines would have it. `lo-rps`
steers everything on a loopback device of its own to the generator's cores. The namespaces have no
names: processes hold them, the kernel ends these with this one however it ends, and everything in
the namespaces goes with them. Nothing of the machine's own network is changed.
"""

import ctypes
import random
import signal
import subprocess

NETWORKS = ("loopback", "veth", "lo-rps")
SERVER, CLIENT = "10.213.0.1", "10.213.0.2"
# A prefix of addresses that all belong to the client, for more connections than one has ports.
CLIENTS = "10.214"
CONNECTIONS_PER_ADDRESS = 10_000
PR_SET_PDEATHSIG = 1

LIBC = ctypes.CDLL(None, use_errno=True)


class NotAllowed(Exception):
    """This user or kernel does not offer such a network."""


def end_with_parent():
    """For `preexec_fn`: the process gets SIGTERM when this one ends, even by SIGKILL."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def mask(cores):
    """Cores as the kernel's files take them: hexadecimal words of 32 from the left."""
    bits = sum(1 << core for core in set(cores))
    words = []
    while bits or not words:
        words.append(f"{bits & 0xFFFFFFFF:08x}")
        bits >>= 32
    return ",".join(reversed(words))


class Network:
    """Where servers listen and what their and the generator's commands are prefixed with."""

    host = "127.0.0.1"
    is_loopback = True

    def __init__(self, name):
        self.name = name
        self.holders = []
        self.server_prefix = []
        self.client_prefix = []

    def clients(self, conns):
        """loadgen's flags for the addresses to connect from. Over loopback it finds them itself."""
        if self.is_loopback:
            return []
        count = -(-conns // CONNECTIONS_PER_ADDRESS)
        # Others with each run: ports of the last one are in TIME_WAIT.
        drawn = random.sample(range(256, 65_000), count)
        return ["--from", *(f"{CLIENTS}.{n >> 8}.{n & 255}" for n in drawn)]

    def close(self):
        for holder in self.holders:
            holder.kill()
            holder.communicate()
        self.holders = []

    def hold(self):
        """A new namespace: the prefix of commands to be run in it."""
        holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo held; exec sleep infinity"],
            preexec_fn=end_with_parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.holders.append(holder)
        if holder.stdout.readline() != "held\n":
            raise NotAllowed(holder.stderr.read().strip() or "unshare --net fails")
        return ["nsenter", f"--net=/proc/{holder.pid}/ns/net", "--"]


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise NotAllowed(
            f"{' '.join(map(str, command[3:] if command[0] == 'nsenter' else command))}:"
            f" {done.stderr.strip()}"
        )


def steer(prefix, device, cores):
    """Has the cores run what arrives on a device: receive packet steering."""
    # The devices of a namespace show only in a sysfs that was mounted inside it.
    run(
        *prefix,
        "unshare",
        "--mount",
        "sh",
        "-c",
        f"mount -t sysfs sysfs /sys && echo {mask(cores)} >"
        f" /sys/class/net/{device}/queues/rx-0/rps_cpus",
    )


def veth(network, server_core, loadgen_cores):
    server, client = network.hold(), network.hold()
    run(
        *server,
        "ip",
        "link",
        "add",
        "name",
        "server",
        "type",
        "veth",
        "peer",
        "name",
        "client",
        "netns",
        network.holders[1].pid,
    )
    for prefix, device, address in ((server, "server", SERVER), (client, "client", CLIENT)):
        run(*prefix, "ip", "address", "add", f"{address}/30", "dev", device)
        run(*prefix, "ip", "link", "set", "lo", "up")
        run(*prefix, "ip", "link", "set", device, "up")
    run(*client, "ip", "route", "add", "local", f"{CLIENTS}.0.0/16", "dev", "client")
    run(*server, "ip", "route", "add", f"{CLIENTS}.0.0/16", "via", CLIENT)
    steer(client, "client", loadgen_cores)
    steer(server, "server", [server_core])
    network.host, network.is_loopback = SERVER, False
    network.server_prefix, network.client_prefix = server, client


def lo_rps(network, _server_core, loadgen_cores):
    both = network.hold()
    run(*both, "ip", "link", "set", "lo", "up")
    steer(both, "lo", loadgen_cores)
    network.server_prefix = network.client_prefix = both


def opened(name, server_core, loadgen_cores):
    """The network of that name. Raises NotAllowed, and leaves nothing behind then."""
    network = Network(name)
    if name == "loopback":
        return network
    if server_core in loadgen_cores:
        raise NotAllowed("the generator needs a core that is not the server's")
    try:
        (veth if name == "veth" else lo_rps)(network, server_core, loadgen_cores)
    except (NotAllowed, OSError) as error:
        network.close()
        raise NotAllowed(str(error)) from error
    except BaseException:
        network.close()
        raise
    return network


def packets_by_core():
    """Packets that each core has taken through the network stack so far, over all namespaces."""
    with open("/proc/net/softnet_stat") as file:
        rows = [line.split() for line in file]
    return {
        int(row[12], 16) if len(row) > 12 else at: int(row[0], 16) for at, row in enumerate(rows)
    }


def share_off(core, before, after):
    """The share of the packets between two moments that other cores took; None without packets."""
    counts = {at: (count - before.get(at, 0)) % (1 << 32) for at, count in after.items()}
    everything = sum(counts.values())
    return 1 - counts.get(core, 0) / everything if everything else None
