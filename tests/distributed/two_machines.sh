#!/usr/bin/env bash
# Two machines on one: two network namespaces, joined by a virtual cable, run torchrun each.
#   unshare --user --map-root-user --net bash two_machines.sh PYTHON [ARGUMENTS OF THE TRAINING ...]
# Needs no rights but that of making namespaces; they end with the script.
set -euo pipefail

python=$1
shift
port=29400

unshare --net sleep 1000 &
machine=$!
trap 'kill $machine' EXIT
while [ "$(readlink /proc/$machine/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done

ip link add cable0 type veth peer name cable1 netns $machine
ip link set lo up
ip address add 10.77.0.1/24 dev cable0
ip link set cable0 up
nsenter --target $machine --net ip link set lo up
nsenter --target $machine --net ip address add 10.77.0.2/24 dev cable1
nsenter --target $machine --net ip link set cable1 up

launch=("$python" -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --master-addr 10.77.0.1 --master-port $port)
GLOO_SOCKET_IFNAME=cable1 nsenter --target $machine --net "${launch[@]}" --node-rank 1 "$@" &
second=$!
GLOO_SOCKET_IFNAME=cable0 "${launch[@]}" --node-rank 0 "$@"
wait $second
echo "bytes over the cable: $(awk '$1 == "cable0:" { print $2 + $10 }' /proc/net/dev)"
