#!/bin/sh
# Make a key and a certificate for one cluster, in this folder, and put them into its secret.
set -eu
umask 077
openssl req -x509 -newkey rsa:3072 -nodes -days 90 -subj /CN=cvdask \
  -addext "subjectAltName=DNS:cvdask-scheduler" -keyout tls.key -out tls.crt
cp tls.crt ca.crt
kubectl -n cvdask create secret generic cvdask-tls \
  --from-file=ca.crt --from-file=tls.crt --from-file=tls.key
