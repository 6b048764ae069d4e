#!/usr/bin/env bash
# Everything that is run on a machine with a GPU and without npm: tests, bars, ablation, sanitizers.
#
#   bench/gpu/run.sh OUT [PART...]
#
# Parts: tests endurance bars ablation bench demo memcheck racecheck (default: tests bars ablation), and, with Python's
# PyTorch and Triton: peers (every peer against float64), compare (NEXUS_COMPARE names its parts, default quick), drift, traffic;
# counters, as traffic, wants Nsight Compute.
# Wants the built package (dist/, kernels/bundle/, node_modules/ with the production
# dependencies, test/fixtures/) and Node: `node` on the path, or NEXUS_NODE naming a binary or
# a Node archive (.tar.gz, .tgz, .tar.xz), which is unpacked into a folder of its own.
# Every part has a time limit, NEXUS_LIMIT_<PART> in seconds, and writes OUT/<part>.log; one
# that fails does not keep the next from running. Ends with 1 if any part failed.
set -uo pipefail
cd "$(dirname "$0")/../.."

out=${1:?usage: bench/gpu/run.sh OUT [PART...]}
shift
mkdir -p "$out"
out=$(cd "$out" && pwd)
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(tests bars ablation)

node=${NEXUS_NODE:-node}
case $node in
*.tgz | *.tar.gz | *.tar.xz)
  unpacked=$(mktemp -d)
  trap 'rm -rf "$unpacked"' EXIT
  tar -xf "$node" -C "$unpacked" || exit 1
  node=$(find "$unpacked" -path '*/bin/node' \( -type f -o -type l \) | head -n 1)
  ;;
esac
"$node" --version || { echo "no Node: put it on the path or name it in NEXUS_NODE" >&2; exit 1; }
PATH=$(dirname "$(command -v "$node")"):$PATH
export PATH NEXUS_REQUIRE_GPU=1
nexus=dist/src/cli/main.js

# What racecheck is not asked about. The warp groups of these kernels tell each other by mbarriers, and Triton its own by a barrier that
# not all warps come to at once; racecheck follows neither, and takes every word that is so passed on for a race. (It named no other
# word, an entry of the box of packed_ask.py or what Triton's warps are to run, in 84 reports.)
unfollowed=()

# sanitize TOOL [ELEMENT TYPE[/PART]]
sanitize() {
  local sanitizer
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -n 1)
  [ -n "$sanitizer" ] || { echo "compute-sanitizer is not installed here"; return 77; }
  # Deliberate refusals by the driver, such as asking past a kernel's last parameter, are no faults.
  "$sanitizer" --tool "$1" --report-api-errors no --error-exitcode 9 "${unfollowed[@]}" node bench/gpu/small.mjs "${@:2}"
}

part() {
  case $1 in
  tests) node test/run.mjs .gpu.test ;;
  endurance) NEXUS_REPLAYS=${NEXUS_REPLAYS:-1000000} node test/run.mjs gpu/endurance ;;
  bars) node bench/gpu/bars.mjs --out "$out/bars.json" ${NEXUS_ONLY:+--only "$NEXUS_ONLY"} ;;
  ablation) node $nexus bench --device cuda --ablation --json | node bench/gpu/with-commit.mjs >"$out/ablation.json" ;;
  bench) node $nexus bench --device cuda --json >"$out/bench.json" ;;
  demo) node $nexus demo --device cuda ;;
  peers) python3 bench/peers/test_peers.py ;;
  compare) node bench/compare/main.mjs --out "$out" ${NEXUS_COMPARE:-quick} ;;
  drift) node bench/compare/drift.mjs --json "$out/drift.json" ;;
  traffic) node bench/traffic/measure.mjs --json "$out/traffic.json" ;;
  counters) node bench/counters/measure.mjs --json "$out/counters.json" ;;
  memcheck) sanitize memcheck ;;
  # In one process it needs more memory than many hosts have.
  racecheck)
    unfollowed=(--kernel-regex-exclude kns=project_packed)
    for forms in bfloat16/{1,2,3,4,5} float16/{1,2,3} float32/{1,2}; do
      sanitize racecheck $forms || return
    done
    ;;
  *) echo "there is no part $1"; return 2 ;;
  esac
}

# Seconds; bash functions cannot be run by timeout(1), so a part is this script again.
if [ -n "${NEXUS_PART:-}" ]; then
  part "$NEXUS_PART"
  exit
fi
limit() {
  local name=NEXUS_LIMIT_${1^^}
  case $1 in
  tests) echo "${!name:-300}" ;;
  compare | endurance | memcheck | racecheck) echo "${!name:-600}" ;;
  peers) echo "${!name:-400}" ;;
  *) echo "${!name:-180}" ;;
  esac
}

failed=0
table=""
for each in "${parts[@]}"; do
  began=$SECONDS
  NEXUS_PART=$each NEXUS_NODE=$(command -v node) timeout -k 10 "$(limit "$each")" \
    bash "$0" "$out" >"$out/$each.log" 2>&1
  status=$?
  case $status in
  0) verdict=ok ;;
  77) verdict="not run" ;;
  124 | 137) verdict="out of time" failed=1 ;;
  *) verdict="FAILED ($status)" failed=1 ;;
  esac
  table+=$(printf '%-10s %-12s %4d s' "$each" "$verdict" $((SECONDS - began)))$'\n'
  [ "$status" = 0 ] || tail -n 40 "$out/$each.log"
done
[ ! -f "$out/bars.log" ] || grep -E ' us |FAILED' "$out/bars.log"
printf '\n%s' "$table" | tee "$out/summary.txt"
exit $failed
