#!/bin/sh
# certificates.sh FOLDER DOMAIN: a CA with a robot's certificate and those of an XRootD server, a web server and an ACME server.
set -eu
umask 077
mkdir "$1"
cd "$1"

name="/DC=org/DC=example"
openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 30 -subj "$name/CN=Example CA" \
  -addext keyUsage=critical,keyCertSign,cRLSign
hash=$(openssl x509 -hash -noout -in ca.pem)
mkdir grid
cp ca.pem "grid/$hash.0"
cat >"grid/$hash.signing_policy" <<POLICY
access_id_CA X509 '$name/CN=Example CA'
pos_rights globus CA:sign
cond_subjects globus '"$name/*"'
POLICY

sign() { # FILE SUBJECT [LINE OF AN EXTENSION]
  openssl req -newkey rsa:2048 -nodes -keyout "$1.key" -out "$1.csr" -subj "$2"
  printf '%s\n' basicConstraints=critical,CA:FALSE keyUsage=critical,digitalSignature,keyEncipherment "${3:-}" >"$1.extensions"
  openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 20 -extfile "$1.extensions" -out "$1.pem"
}
sign robot "$name/CN=Robot"
sign host "$name/CN=localhost" subjectAltName=DNS:localhost
sign web "/CN=$2" "subjectAltName=DNS:$2"
