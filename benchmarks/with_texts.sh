# What the scripts of chapters have in common, which read this: TEXTS and OUT, the programs' Python, and a command
# with the three kinds of text. The fourth line of a script says how it is called.
[ $# -ge 2 ] || { sed -n '4p' "$0" >&2; exit 2; }
texts=$1 out=$2
shift 2
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

found() { # the file of a kind of text
    for file in "$texts/$1.txt" "$texts/$1.txt.xz"; do
        [ ! -f "$file" ] || { echo "$file"; return; }
    done
    echo "error: $texts has neither $1.txt nor $1.txt.xz" >&2
    exit 2
}

prose=$(found prose)
poetry=$(found poetry)

with_texts() { # a command with the three kinds of text
    "$@" --text "prose=$prose" --blocks "poetry=$poetry" --python code=installed
}
