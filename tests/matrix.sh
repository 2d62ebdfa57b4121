#!/bin/sh
# The suite in environments of their own, without torchaudio: the oldest torch that is declared on Python 3.11, and the
# newest that was tested on Python 3.13. What is not at hand is named and left out.
set -u
status=0
for pair in "python3.11 constraints-oldest.txt" "python3.13 constraints-newest.txt"; do
    python=${pair% *} constraints=${pair#* } place=.matrix/${pair% *}
    if ! command -v "$python" > /dev/null || ! "$python" --version > /dev/null 2>&1; then
        echo "left out: $python is not at hand"
        continue
    fi
    if ! { "$python" -m venv "$place" && "$place/bin/python" -m pip install --quiet --disable-pip-version-check \
        -c "$constraints" -e '.[demo,hub,metrics,tensorboard,test]'; }; then
        echo "left out: $constraints cannot be installed on $python"
        status=1
        continue
    fi
    echo "$python, $constraints"
    OMP_NUM_THREADS=1 "$place/bin/python" -m pytest -n 2 --dist loadgroup || status=1
done
exit $status
