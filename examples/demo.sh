#!/bin/bash
# The whole way on this computer: set up, make example data, create a platform, train there, predict one event.
# Run again, it reuses what is there. Everything it makes is in .demo and in the platform `demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
demo=$PWD/.demo
name=${DEMO_PLATFORM:-demo}
bin=$demo/venv/bin
stages=()

stage() {
  local title=$1 start=$EPOCHREALTIME
  shift
  printf '\n=== %s\n' "$title"
  "$@"
  stages+=("$(printf '%-34s %6.1f s' "$title" "$(awk "BEGIN { print $EPOCHREALTIME - $start }")")")
}

setup() {
  local stamp
  stamp=$(find locks/laptop.txt pyproject.toml provision mlaas4hep roles playbooks templates -type f ! -name '*.pyc' \
    -exec sha256sum {} + | sort | sha256sum)
  if [ "$(cat "$demo/installed" 2>/dev/null)" = "$stamp" ]; then
    echo "The toolkit is installed in $demo/venv."
    return
  fi
  [ -d "$demo/venv" ] || "${PYTHON:-python3}" -m venv "$demo/venv"
  local pip=("$bin/python" -m pip --disable-pip-version-check --quiet install)
  "${pip[@]}" --require-hashes -r locks/laptop.txt
  "${pip[@]}" --no-deps --no-build-isolation --force-reinstall .
  echo "$stamp" >"$demo/installed"
}

example_data() {
  if [ -d "$demo/higgs" ]; then
    echo "The example is in $demo/higgs."
  else
    "$bin/mlaas4hep" example-data "$demo/higgs"
  fi
}

train() {
  if [ -d "$demo/model" ]; then
    echo "The model is in $demo/model."
    return
  fi
  "$bin/provision" train "$name" "$demo/higgs"
  "$bin/provision" fetch "$name" --to "$demo/model"
}

results() {
  "$bin/python" - "$demo/model/metrics.json" <<'PYTHON'
import json, sys
test = json.load(open(sys.argv[1]))["final"]["test"]
print(f"Test AUC {test['auc']:.4f} +- {test['auc_error']:.4f}, accuracy {test['accuracy']:.4f}, {test['events']} events")
PYTHON
  echo "Prediction for the event $demo/higgs/event.json:"
  "$bin/provision" predict "$name" "$demo/higgs/event.json"
}

stage "set up the toolkit" setup
stage "example data" example_data
stage "platform on this computer" "$bin/provision" create "$name" --cloud local --yes
stage "training on the platform" train
stage "test AUC and one prediction" results

printf '\nStages:\n'
printf '  %s\n' "${stages[@]}"
cat <<END

Log in:             ssh $name
Train again:        $bin/provision train $name $demo/higgs
Delete everything:  $bin/provision delete $name --yes && rm -rf $demo
END
