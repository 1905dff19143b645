"""Close the ports that the role opened in ufw and firewalld; print one line for each rule that is gone.

Runs on the host, with its own Python (3.9 and newer). Arguments: the networks, as one JSON list, and the ports,
as another, in which a range is written as 8100-8199.
"""

import json
import shlex
import shutil
import subprocess
import sys


def output(*command):
    """What a command prints; nothing where it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True)
    return done.stdout if done.returncode == 0 else ""


def close_ufw(ports):
    """Delete the rules that carry our name, whatever networks they were made for."""
    wanted = [port.replace("-", ":") for port in ports]
    for line in output("ufw", "show", "added").splitlines():
        words = shlex.split(line)
        port = words[words.index("port") + 1] if "port" in words else ""
        if words[-2:] == ["comment", "llama-orch"] and port in wanted:
            subprocess.run(["ufw", "delete", *words[1:-2]], check=True, stdout=subprocess.DEVNULL)
            print("ufw: %s" % " ".join(words[1:-2]))


def close_firewalld(networks, ports):
    """Remove exactly the rules that are opened for these networks: firewalld keeps no comments."""
    if not output("firewall-cmd", "--state"):
        return
    for network in networks:
        for port in ports:
            family = "ipv6" if ":" in network else "ipv4"
            rule = 'rule family="%s" source address="%s" port port="%s" protocol="tcp" accept' % (family, network, port)
            for where in (["--permanent"], []):
                if output("firewall-cmd", *where, "--query-rich-rule=" + rule):
                    output("firewall-cmd", *where, "--remove-rich-rule=" + rule)
                    print("firewalld: %s" % rule)


def main():
    """Both may be installed; a rule of the one that is off would be in force once it is switched on."""
    networks, ports = json.loads(sys.argv[1]), json.loads(sys.argv[2])
    if shutil.which("ufw"):
        close_ufw(ports)
    if shutil.which("firewall-cmd"):
        close_firewalld(networks, ports)


main()
