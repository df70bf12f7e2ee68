# Shared by the scripts beside this one. POSIX; in a container only these tools need to be there: mv, rm, sleep, tail, wc.
# $1: the folder, $2: the attempt's name, $3: how many bytes of output are told at most.
dir=$1 keep=$3
f=$dir/.reveille-$2
# Of a line of /proc/PID/stat: state, process group, start time.
field() { set -- ${1##*") "}; echo "$1 $3 ${20}"; }
# Process $1 as it stands now; nothing if it is gone.
stat_of() { { read -r line <"/proc/$1/stat"; } 2>/dev/null && field "$line"; }
tell_end() {
  echo "exit $1 $(($(wc -c <"$f.out"))) $(($(wc -c <"$f.err")))"
  tail_out
}
tail_out() {
  tail -c "$keep" "$f.out"
  tail -c "$keep" "$f.err" >&2
}
# Says how the attempt ended, if it did.
told_end() {
  [ -e "$f.code" ] && read -r code <"$f.code" && tell_end "$code"
}
# Says what else is known. Who finds that nobody has begun sees to it that nobody will.
told_not_begun() {
  if ( set -C; echo none >"$f.pid" ) 2>/dev/null; then echo none; return 0; fi
  if ! [ -e "$f.pid" ]; then echo "gone the folder $dir can't be written to any more"; return 0; fi
  pid= group= start=
  read -r pid group start <"$f.pid"
  case $pid in
    none) echo none ;;
    '') echo running ;;
    *) return 1 ;;
  esac
}
