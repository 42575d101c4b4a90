"""A link between two network namespaces that loses packets.

lossy.py A B PERCENT SEED: the namespaces get 192.0.2.1 and 192.0.2.2. Prints "ready", and "N of M lost" once its
standard input ends. Packets pass through this program, since not every kernel has netem.
"""

import fcntl
import os
import random
import select
import struct
import subprocess
import sys

TUNSETIFF = 0x400454CA
TUN_WITHOUT_HEADER = 0x1001


def end_in(namespace, number):
    """One end of the link: what the namespace sends can be read from it."""
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    name = f"lossy{os.getpid() % 100000}{'ab'[number]}"
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", name.encode(), TUN_WITHOUT_HEADER))
    for words in (
        f"ip link set {name} netns {namespace}",
        f"ip -n {namespace} addr add 192.0.2.{number + 1}/24 dev {name}",
        f"ip -n {namespace} link set {name} up",
    ):
        subprocess.run(words.split(), check=True)
    return end


def main():
    first, second, percent, seed = sys.argv[1:]
    ends = [end_in(first, 0), end_in(second, 1)]
    dice = random.Random(int(seed))
    seen = lost = 0
    print("ready", flush=True)
    while True:
        readable, _, _ = select.select([*ends, sys.stdin], [], [])
        if sys.stdin in readable:
            break
        for end in readable:
            packet = os.read(end, 65536)
            seen += 1
            if dice.random() * 100 < int(percent):
                lost += 1
            else:
                os.write(ends[1 - ends.index(end)], packet)
    print(f"{lost} of {seen} lost", flush=True)


main()
