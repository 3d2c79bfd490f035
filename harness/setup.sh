#!/bin/bash
# Prepares this checkout to run: host packages, a virtual environment, the harness in it.
#
# A second start finds its stamp and does nothing.  `setup.sh packages FILE` installs the host packages
# of another list and nothing else.  Environment: VENV, where the virtual environment goes (default
# .venv); NVH_SETUP_DIR, where logs go (default build).  Exit codes: 0 ready, 125 the host lacks
# something (one line says what).
set -euo pipefail
export LC_ALL=C

root=${BASH_SOURCE[0]%/*}/..
root=$(cd "$root" && pwd)
venv=${VENV:-$root/.venv}
[[ $venv = /* ]] || venv=$PWD/$venv
packages=$root/guest-images/host-packages.txt
work=${NVH_SETUP_DIR:-$root/build}
log=$work/setup.log
stamp=$venv/.nvh-setup
dpkg_status=${NVH_DPKG_STATUS:-/var/lib/dpkg/status}

say() {
    printf 'setup: %s\n' "$*" >&2
}

die() {
    say "$@"
    exit 125
}

# What the environment was made of: the inputs' hash and the Python it uses.
made_of() {
    local sum interpreter
    sum=$(sha256sum "$root/pyproject.toml" "$packages" "$root/harness/setup.sh" | sha256sum)
    interpreter=$(readlink -f "$venv/bin/python" 2>/dev/null || true)
    printf '%s %s\n' "${sum%% *}" "${interpreter:-none}"
}

# When the host's packages last changed.
host_state() {
    stat -c %Y "$dpkg_status" 2>/dev/null || echo none
}

# The environment is whole and made of what is here now.
made() {
    [[ -x $venv/bin/nvh && -x $venv/bin/python && -r $stamp ]] &&
        [[ $(head -n 1 "$stamp") == "$(made_of)" ]]
}

ready() {
    made && [[ $(tail -n 1 "$stamp") == "$(host_state)" ]]
}

write_stamp() {
    { made_of && host_state; } >"$stamp.new"
    mv "$stamp.new" "$stamp"
}

# Prints what host-packages.txt asks for and dpkg does not have.
missing_packages() {
    local line name installed
    installed=$(dpkg-query -W -f '${db:Status-Status} ${binary:Package}\n' 2>/dev/null |
        sed -n 's/^installed \([^:]*\).*/ \1 /p')
    while read -r line; do
        line=${line%%#*}
        name=${line//[[:space:]]/}
        [[ -z $name || $installed == *" $name "* ]] || printf '%s\n' "$name"
    done <"$packages"
}

# The words that make a command run as root, or failure when there is no way.
become_root() {
    if [[ $(id -u) == 0 ]]; then
        as_root=(env)
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        as_root=(sudo -n)
    elif command -v sudo >/dev/null && [[ -t 0 && -t 2 ]]; then
        as_root=(sudo)
    else
        return 1
    fi
}

apt_install() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q \
        --no-install-recommends -o DPkg::Lock::Timeout=120 "$@" >>"$log" 2>&1 </dev/null
}

# Installs packages; package lists are fetched only when the ones at hand do not do.
install_packages() {
    say "installing $*"
    apt_install "$@" && return
    "${as_root[@]}" apt-get update -q >>"$log" 2>&1 </dev/null || true
    apt_install "$@" ||
        die "apt-get could not install $*: $(last_words '^E:') (see $log)"
}

# The last line of the log that matches, or its last line.
last_words() {
    { grep -E "$1" "$log" || tail -n 1 "$log"; } | tail -n 1
}

host_packages() {
    local missing
    command -v dpkg-query >/dev/null ||
        die "no dpkg-query: this needs a Debian or Ubuntu host with $(package_names)"
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]})) || return 0
    become_root ||
        die "missing packages, and neither root nor sudo to install them:" \
            "apt-get install ${missing[*]}"
    install_packages "${missing[@]}"
}

package_names() {
    sed 's/#.*//' "$packages" | tr -s '[:space:]' ' '
}

# Prints the path of a Python of 3.11 or newer that can make virtual environments.
find_python() {
    local name
    for name in python3 python3.13 python3.12 python3.11; do
        # Asked itself: the name may be a version manager's script.
        "$name" -c 'import os, sys, venv, ensurepip
if sys.version_info < (3, 11): sys.exit(1)
print(os.path.realpath(sys.executable))' 2>/dev/null && return
    done
    return 1
}

need_python() {
    local version
    python=$(find_python) && return
    # The release's own Python is older: take a newer one where the release has it.
    if become_root; then
        for version in 3.13 3.12 3.11; do
            if apt-cache show "python$version-venv" >/dev/null 2>&1; then
                install_packages "python$version" "python$version-venv"
                python=$(find_python) && return
            fi
        done
    fi
    die "no Python 3.11 or newer with its venv module: apt-get install python3 python3-venv"
}

make_environment() {
    if [[ -e $venv && ! -f $venv/pyvenv.cfg && -n $(ls -A "$venv") ]]; then
        die "$venv is there and is no virtual environment: move it away or set VENV"
    fi
    # Without a stamp it may be half made; of another Python it is of no use.
    if [[ ! -f $stamp ]] ||
        [[ $(readlink -f "$venv/bin/python" || true) != "$(readlink -f "$python")" ]]; then
        rm -rf "$venv"
        say "making $venv with $python"
        "$python" -m venv "$venv" >>"$log" 2>&1 ||
            die "$python could not make $venv: $(last_words .) (see $log)"
    fi
    rm -f "$stamp"
    say "installing the harness's Python packages"
    (cd "$root" && "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --no-input --retries 2 --timeout 20 --editable '.[dev]') >>"$log" 2>&1 ||
        die "pip could not install the Python packages: $(last_words ERROR:) (see $log);" \
            "is there a network, or an index in PIP_INDEX_URL?"
}

if [[ ${1:-} == packages ]]; then
    packages=$2
    log=${log%.log}-packages.log
elif ready; then
    exit 0
fi
mkdir -p "$work" 2>/dev/null || die "cannot write to $work"
# Two set-ups of one checkout: the second waits, then finds the first one's work.
exec 9>"$work/setup.lock"
flock 9
if [[ ${1:-} != packages ]] && ready; then
    exit 0
fi
: >"$log"
host_packages
[[ ${1:-} != packages ]] || exit 0
if ! made; then
    need_python
    make_environment
    say "ready"
fi
write_stamp
