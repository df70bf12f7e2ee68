# Takes away what an attempt has left.
rm -f "$f.pid" "$f.child" "$f.out" "$f.err" "$f.tmp" "$f.code"
