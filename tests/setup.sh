#!/usr/bin/env bash
# Installs what the tests need beyond Rust and a C compiler: PostgreSQL's server programs, Node with the
# packages of tests/interop, strace, Chromium, nginx, Caddy. Says what it does; says plainly what it could not. A
# test that lacks its tool says so on the terminal and is counted as not run by nobody but the reader, so read it.
set -uo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
have() { command -v "$1" >/dev/null 2>&1; }

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo -n)
can_install() { have apt-get && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; }

updated=no
# install WHY PACKAGE...
install() {
    local why=$1
    shift
    if ! can_install; then
        say "could not install $* ($why): needs apt-get and root; tests that need it will say that they did not run"
        return 1
    fi
    if [ $updated = no ]; then
        say "refreshing the list of packages"
        "${as_root[@]}" apt-get update -qq || say "could not refresh the list of packages; trying with the old one"
        updated=yes
    fi
    say "installing $* ($why)"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null ||
        say "could not install $* ($why); tests that need it will say that they did not run"
}

have cc || install "the C compiler that builds SQLite" gcc libc6-dev

initdb() { have initdb || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; }
initdb || install "a private PostgreSQL cluster for the store's tests" postgresql

have node && have npm || install "the River and browser interop tests" nodejs npm
for folder in tests/interop tests/interop/durable; do
    have npm || break
    # npm writes the second file last, so a newer lock means another set of packages.
    if [ $folder/package-lock.json -nt $folder/node_modules/.package-lock.json ]; then
        say "npm ci in $folder"
        npm ci --prefix $folder --no-audit --no-fund --silent ||
            say "npm ci failed; the interop tests will say that they did not run"
    fi
done

# The River reference, as it is now and as it was; the tests that need one say so where it is not to be had.
for folder in river river-v1; do
    if have npm && ! [ -d tests/interop/$folder/node_modules/@replit/river ]; then
        say "npm install in tests/interop/$folder"
        npm install --prefix tests/interop/$folder --no-audit --no-fund --no-package-lock --silent ||
            say "npm could not install @replit/river in tests/interop/$folder; its interop tests will say that they did not run"
    fi
done

have strace || install "the tests that make system calls on the spool fail" strace

have chromium || have chromium-browser || have google-chrome ||
    install "the dashboard's tests in a real browser" chromium

{ have sshd || [ -x /usr/sbin/sshd ]; } && have rsync ||
    install "real ssh, scp and rsync through pipes whose connections break" openssh-server openssh-client rsync
compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null ||
    install "a calendar that jumps, as it does when a machine wakes from sleep" faketime
have ip && have python3 ||
    install "replicas and pipes over links that break or lose packets" iproute2 python3-minimal
have nginx && have caddy ||
    install "the proxy configurations of examples/deploy" nginx-light caddy

exit 0
