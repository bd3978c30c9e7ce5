#!/bin/sh
# Tell Ray that this machine is about to be taken away, so that work leaves it in time:
#   spot_notice.sh aws 110     until AWS' notice is there (two minutes before), then 110 s are left
#   spot_notice.sh gcp 25      the same for Google Cloud (30 s before)
# On a machine that is no spot machine it asks in vain, which does no harm. Asked every 5 s, as
# AWS' documentation on interruption notices has it.
set -u
noticed() {
  case $1 in
  aws)
    at=${METADATA:-http://169.254.169.254}/latest
    token=$(curl -sf -m 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$at/api/token") &&
      curl -sf -m 2 -H "X-aws-ec2-metadata-token: $token" "$at/meta-data/spot/instance-action"
    ;;
  gcp)
    at=${METADATA:-http://metadata.google.internal}/computeMetadata/v1
    curl -sf -m 2 -H 'Metadata-Flavor: Google' "$at/instance/preempted" | grep -x TRUE
    ;;
  *)
    echo "$1: give aws or gcp" >&2
    exit 2
    ;;
  esac
}
until noticed "$1"; do sleep "${PAUSE:-5}"; done
exec ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION \
  --reason-message 'the spot machine is taken away' --deadline-remaining-seconds "$2"
