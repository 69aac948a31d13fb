#!/bin/sh
# Runs a command where python3.13 is: on this machine if it has one, else in a Debian that is fetched into .newest, which
# needs root and the package debootstrap. `make test-newest` installs and tests through it.
#
# The Debian has this folder at the same place, and the certificates and devices of this machine. Its mounts belong to the
# command alone and end with it, so that `rm -rf .newest` is safe at any time. It needs /sys too: the TPU compiler counts
# the CPUs there.
set -eu
root=$PWD/.newest

if [ "${1-}" = --inside ]; then
    shift
    for folder in /proc /sys /dev /etc/ssl/certs "$PWD"; do
        [ -d "$folder" ] || continue
        mkdir -p "$root$folder"
        case $folder in "$PWD") how=--bind ;; *) how=--rbind ;; esac
        mount "$how" "$folder" "$root$folder"
    done
    # Where this machine finds itself: several processes of a run meet there.
    mount --bind /etc/hosts "$root/etc/hosts"
    # shellcheck disable=SC2016
    exec chroot "$root" sh -c 'cd "$0" && exec "$@"' "$PWD" "$@"
fi

if python3.13 -c pass 2>/dev/null; then exec "$@"; fi
if ! { [ "$(id -u)" = 0 ] && command -v debootstrap && command -v unshare; } >/dev/null; then
    echo "There is no python3.13 on PATH; fetching Debian's needs root and the package debootstrap." >&2
    exit 1
fi
if [ ! -e .newest/.fetched ]; then
    echo "Fetching Debian 13 with Python 3.13 into .newest (about a minute)"
    rm -rf .newest
    debootstrap --variant=minbase --include=python3-venv,ca-certificates trixie .newest >/dev/null
    touch .newest/.fetched
fi
exec unshare --mount sh "$0" --inside "$@"
