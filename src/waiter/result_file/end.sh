# Ends an attempt whose time is over.
told_end && exit 0
told_not_begun && [ "$pid" = none ] && exit 0
[ -n "$pid" ] || exit 0
leads=
if [ "$group" = "$pid" ]; then leads=yes; fi
# Zombies are dead.
alive() {
  for s in /proc/[0-9]*; do
    now=$(stat_of "${s#/proc/}") || continue
    set -- $now
    if [ "$1" = Z ] || [ "$1" = X ]; then continue; fi
    if [ -n "$leads" ]; then
      if [ "$2" = "$group" ]; then return 0; fi
    elif [ "${s#/proc/}" = "$child" ]; then
      return 0
    fi
  done
  return 1
}
child=
if [ -e "$f.child" ]; then read -r child <"$f.child"; fi
# Without a process group of its own only the command itself is known.
send() { if [ -n "$leads" ]; then kill -s "$1" -- "-$group"; else kill -s "$1" "$child"; fi 2>/dev/null; }
now=$(stat_of "$pid")
if [ -n "$leads" ] && [ -n "$now" ] && [ "${now#* }" != "$group $start" ]; then echo "gone its process is gone"; exit 0; fi
send TERM
i=0
while [ "$i" -lt 5 ] && alive; do sleep 1; i=$((i + 1)); done
if alive; then send KILL; sleep 1; fi
if alive; then echo stuck; else echo ended; fi
tail_out
