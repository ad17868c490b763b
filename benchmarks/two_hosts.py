"""Two hosts: workers in two network namespaces get the model that one process gets.

    python benchmarks/two_hosts.py

It makes two network namespaces with a cable between them (veth), each with an address of its own:
what listens on 127.0.0.1 in one cannot be reached from the other. The scheduler, the client and a
worker run in the first, another worker in the second. It needs the right to make namespaces (root,
or CAP_SYS_ADMIN and CAP_NET_ADMIN) and the program ip; without them it says so and ends well. The
namespaces are removed at the end. The floor is on the largest difference of a weight.
"""

import os
import subprocess
import sys
import warnings

import numpy as np
from _harness import check_floors, parser, save

NAMES = ("skvae-a", "skvae-b")
ADDRESSES = ("10.213.77.1", "10.213.77.2")
PORT = 8786
SETTINGS = {"n_components": 2, "max_iter": 2, "random_state": 0, "batch_size": 300}


def parts():
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(2, 6))
    return [
        np.tanh(rng.normal(size=(size, 2)) @ loadings) + 0.3 * rng.normal(size=(size, 6))
        for size in (3000, 500, 1, 800)
    ]


def ip(*words, check=True):
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


def make_hosts():
    """Make both namespaces; the reason if that is not allowed here."""
    try:
        remove_hosts()
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", "skvae-0", "netns", NAMES[0], "type", "veth", "peer", "name", "skvae-1",
           "netns", NAMES[1])  # fmt: skip
        for number, (name, address) in enumerate(zip(NAMES, ADDRESSES, strict=True)):
            ip("-n", name, "address", "add", f"{address}/24", "dev", f"skvae-{number}")
            ip("-n", name, "link", "set", f"skvae-{number}", "up")
            ip("-n", name, "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        return getattr(error, "stderr", None) or str(error)
    return None


def remove_hosts():
    for name in NAMES:
        ip("netns", "delete", name, check=False)


def on_host(number, *command):
    """Start a program in a namespace."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(["ip", "netns", "exec", NAMES[number], *command], env=environment)


def as_client(folder):
    """Fit on the cluster, and keep the weights."""
    import dask.array as da
    from distributed import Client

    from skvae.dask import DaskVAETransformer

    X = da.concatenate([da.from_array(part, chunks=-1) for part in parts()])
    with Client(f"tcp://{ADDRESSES[0]}:{PORT}") as client:
        client.wait_for_workers(2, timeout=60)
        vae = DaskVAETransformer(**SETTINGS, n_shards=3, client=client).fit(X)
        hosts = sorted({address.split(":")[1].strip("/") for address in client.nthreads()})
        assert hosts == sorted(ADDRESSES), hosts
    np.savez(folder, **vae.weights_)


def main():
    import tempfile
    from pathlib import Path

    from skvae import VAETransformer
    from skvae.distributed import fit

    if reason := make_hosts():
        print(f"Skipped: no network namespaces can be made here. {reason.strip()}")
        return
    started = []
    try:
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "weights.npz"
            python = [sys.executable, "-m"]
            started += [
                on_host(0, *python, "distributed.cli.dask_scheduler", "--host", ADDRESSES[0],
                        "--port", str(PORT), "--no-dashboard"),
                *(
                    on_host(number, *python, "distributed.cli.dask_worker",
                            f"tcp://{ADDRESSES[0]}:{PORT}", "--host", address, "--nthreads", "1",
                            "--no-dashboard", "--no-nanny", "--local-directory", name)
                    for number, address in enumerate(ADDRESSES)
                ),
            ]  # fmt: skip
            client = on_host(0, sys.executable, __file__, "--child", str(path))
            assert client.wait(timeout=240) == 0
            with np.load(path) as found:
                alone = fit(VAETransformer(**SETTINGS), parts(), n_shards=3)
                gaps = [np.abs(found[key] - own).max() for key, own in alone.weights_.items()]
                largest = max(np.abs(own).max() for own in alone.weights_.values())
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(timeout=30)
        remove_hosts()
    gap = float(max(gaps) / largest)
    print(f"Two hosts against one process: the largest difference is {gap:.1e} of a weight.")
    save("two_hosts", [{"largest difference": gap}])
    check_floors([("minus the difference over the largest weight", -gap, -1e-6)])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    p = parser(__doc__, seeds=1)
    p.add_argument("--child", help="for the benchmark itself")
    arguments = p.parse_args()
    if arguments.child:
        as_client(arguments.child)
    else:
        main()
