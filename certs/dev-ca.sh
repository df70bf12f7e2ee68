#!/bin/sh
# Makes a CA and a serving certificate for development: for a webhook that runs on your machine instead of in the cluster,
# or for a client that talks to it. Not for production: there Reveille makes its own (see README.md).
#
#   certs/dev-ca.sh [-d DIR] [-t DAYS] [NAME ...]
#
#   -d DIR    where the files go; default: target/dev-certs, which git ignores
#   -t DAYS   how long they are valid; default: 30
#   NAME      DNS names and IP addresses of the server; default: reveille.reveille.svc localhost 127.0.0.1
#
# Writes ca.crt, ca.key, tls.crt, tls.key (ECDSA P-256, PEM). An existing CA in DIR is kept and signs again.
set -eu

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"; }

root=$(cd "$(dirname "$0")/.." && pwd)
dir=$root/target/dev-certs
days=30
while getopts d:t:h option; do
  case $option in
    d) dir=$OPTARG ;;
    t) days=$OPTARG ;;
    h) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || set -- reveille.reveille.svc localhost 127.0.0.1

command -v openssl >/dev/null || { echo "dev-ca.sh: openssl is missing (Debian: apt-get install openssl)" >&2; exit 1; }

names=
for name in "$@"; do
  case $name in
    *:*) kind=IP ;;
    *[!0-9.]*) kind=DNS ;;
    *) kind=IP ;;
  esac
  names=${names:+$names,}$kind:$name
done

umask 077
mkdir -p "$dir"

if [ ! -s "$dir/ca.crt" ] || [ ! -s "$dir/ca.key" ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 -days "$days" \
    -subj "/CN=Reveille development CA" \
    -addext "basicConstraints=critical,CA:TRUE,pathlen:0" \
    -addext "keyUsage=critical,keyCertSign,cRLSign" \
    -keyout "$dir/ca.key" -out "$dir/ca.crt" 2>/dev/null
fi

request=$(mktemp)
extensions=$(mktemp)
trap 'rm -f "$request" "$extensions"' EXIT
cat >"$extensions" <<EOF
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth
subjectAltName=$names
EOF
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 \
  -subj "/CN=reveille-dev" -keyout "$dir/tls.key" -out "$request" 2>/dev/null
openssl x509 -req -in "$request" -sha256 -days "$days" -CA "$dir/ca.crt" -CAkey "$dir/ca.key" \
  -set_serial "0x$(openssl rand -hex 16 | sed 's/^./4/')" -extfile "$extensions" -out "$dir/tls.crt" 2>/dev/null

openssl verify -CAfile "$dir/ca.crt" "$dir/tls.crt" >/dev/null
echo "$dir: ca.crt ca.key tls.crt tls.key for $names, valid $days days"
