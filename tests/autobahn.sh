#!/usr/bin/env bash
# Autobahn's WebSocket test suite in both roles: its fuzzing client against our server, its fuzzing server
# against our client (both are examples/ws_echo.rs; WS_ECHO= names one that is built). Fails on a failed case and on more than two that are not strict. Where Python 2.7 or the
# suite is missing it says so, loudly, and does nothing. CASES= picks some ("1.*,5.*"), ROLES= one role.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(cargo metadata --format-version 1 --no-deps | sed -E 's/.*"target_directory":"([^"]+)".*/\1/')
home=$target/autobahn
cases=${CASES:-*}
roles=${ROLES:-server client}

skip() {
    printf '\n*** SKIPPED, Autobahn: %s\n\n' "$*"
    # Asked for by name, nothing may pass for a run that was none.
    exit "${SKIP_EXIT:-0}"
}

python=
for candidate in "${PYTHON27:-}" python2.7 "$HOME"/.pyenv/versions/2.7.*/bin/python2.7; do
    # Started, not only found: a shim of pyenv is there for versions that are not chosen, too.
    if [ -n "$candidate" ] && "$candidate" -c pass >/dev/null 2>&1; then python=$candidate && break; fi
done
[ -n "$python" ] || skip "no Python 2.7 (PYTHON27= names one; pyenv has it)"
export PYTHONPATH=$home/py PYTHONWARNINGS=ignore
if ! "$python" -c 'import autobahntestsuite' 2>/dev/null; then
    echo "installing autobahntestsuite into $home/py"
    "$python" -m pip install --quiet --disable-pip-version-check --target "$home/py" autobahntestsuite ||
        skip "autobahntestsuite could not be installed"
    # A namespace package: in a folder that is no site-packages it needs this to be found.
    touch "$home/py/zope/__init__.py"
fi
wstest='from autobahntestsuite import wstest; wstest.run()'
suite() { "$python" -c "$wstest" "$@"; }

[ -n "${WS_ECHO:-}" ] || cargo build --locked --quiet --example ws_echo
echo_program=${WS_ECHO:-$target/debug/examples/ws_echo}
quoted=$(sed 's/[^,]*/"&"/g' <<<"$cases")
port() { "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
children=()
trap 'for child in "${children[@]:-}"; do [ -z "$child" ] || kill "$child" 2>/dev/null || true; done' EXIT

judge() { # ROLE FILE
    "$python" - "$1" "$2" <<'PYTHON'
import json, sys
role, path = sys.argv[1:]
verdicts = {}
for agent in json.load(open(path)).values():
    for case, found in agent.items():
        for what in ("behavior", "behaviorClose"):
            verdicts.setdefault(found[what], []).append("%s (%s)" % (case, what))
cases = sum(len(agent) for agent in json.load(open(path)).values())
good = ("OK", "INFORMATIONAL", "NON-STRICT")
bad = [(verdict, sorted(which)) for verdict, which in sorted(verdicts.items()) if verdict not in good]
soft = sorted(verdicts.get("NON-STRICT", []))
print("%s: %d cases, %d failed, %d not strict" % (role, cases, sum(len(w) for _, w in bad), len(soft)))
for verdict, which in bad + [("NON-STRICT", soft)]:
    if which:
        print("  %s: %s" % (verdict, ", ".join(which)))
sys.exit(1 if bad or len(soft) > 2 or not cases else 0)
PYTHON
}

mkdir -p "$home"
status=0
for role in $roles; do
    at=127.0.0.1:$(port)
    report=$home/$role
    rm -rf "$report"
    if [ "$role" = server ]; then
        cat >"$home/$role.json" <<JSON
{"outdir": "$report", "servers": [{"agent": "towpath", "url": "ws://$at/"}],
 "cases": [$quoted], "exclude-cases": ["12.*", "13.*"], "exclude-agent-cases": {}}
JSON
        mkfifo "$home/open.$$"
        "$echo_program" serve "$at" <"$home/open.$$" &
        children+=($!)
        exec 9>"$home/open.$$"
        rm "$home/open.$$"
        suite -m fuzzingclient -s "$home/$role.json" >"$home/$role.log" 2>&1 || { tail "$home/$role.log"; status=1; }
        exec 9>&-
    else
        cat >"$home/$role.json" <<JSON
{"url": "ws://$at", "outdir": "$report", "cases": [$quoted], "exclude-cases": ["12.*", "13.*"],
 "exclude-agent-cases": {}}
JSON
        # Not through the function: the shell that ran it would be killed in the end, and not the suite.
        "$python" -c "$wstest" -m fuzzingserver -s "$home/$role.json" -u 0 >"$home/$role.log" 2>&1 &
        children+=($!)
        for _ in $(seq 100); do (exec 3<>"/dev/tcp/${at/://}") 2>/dev/null && break || sleep 0.1; done
        "$echo_program" cases "ws://$at" || { tail "$home/$role.log"; status=1; }
    fi
    judge "$role" "$report/index.json" || status=1
done
exit $status
