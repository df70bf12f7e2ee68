# Runs a command ($4 and on) with its output in files, and keeps its exit code in another.
id=$2
shift 3
refuse() { echo "refused $*"; exit 0; }
for tool in mv rm sleep tail wc; do
  command -v "$tool" >/dev/null 2>&1 || refuse "a result file needs $tool, which is not in the container"
done
own=$(stat_of $$) || refuse "a result file needs /proc, which is not in the container"
umask 077
# The file is made once: an attempt can't be begun twice, however often it is asked for.
if ! ( set -C; : >"$f.pid" ) 2>/dev/null; then
  [ ! -e "$f.pid" ] || refuse "attempt $id was begun before"
  refuse "a result file can't be written to the folder $dir"
fi
if ! ( echo "$$ ${own#* }" >"$f.pid" && : >"$f.out" && : >"$f.err" ) 2>/dev/null; then
  rm -f "$f.pid"
  refuse "a result file can't be written to the folder $dir"
fi
# The shell's own words about signals are no output of the command.
exec 3>&2 2>/dev/null
# What ends the command must leave this script time to say so.
trap : TERM INT HUP
( exec "$@" ) </dev/null >"$f.out" 2>"$f.err" &
child=$!
echo "$child" >"$f.child"
while :; do
  wait "$child"
  code=$?
  # A signal ends the waiting, too.
  if [ "$code" -le 128 ] || ! kill -0 "$child" 2>/dev/null; then break; fi
done
exec 2>&3
echo "$code" >"$f.tmp" && mv "$f.tmp" "$f.code"
tell_end "$code"
