# usage: mutate.sh file 'old' 'new' tests...
f=$1; a=$2; b=$3; shift 3
python3 - "$f" "$a" "$b" <<'P'
import sys
p,a,b=sys.argv[1:]; s=open(p).read(); assert a in s,(p,a); open(p,'w').write(s.replace(a,b,1))
P
PYTHONPATH=/work/wt/mut timeout 300 /work/main/.venv/bin/python -c "import sys; sys.path.insert(0,'/work/wt/mut'); sys.meta_path=[m for m in sys.meta_path if 'editable' not in repr(m).lower()]; import pytest; sys.exit(pytest.main(['-x','-p','no:cacheprovider',*sys.argv[1:]]))" "$@" 2>&1 | tail -3
git checkout -q -- $f
