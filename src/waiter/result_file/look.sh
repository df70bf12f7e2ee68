# Says how an attempt stands.
told_end && exit 0
told_not_begun && exit 0
now=$(stat_of "$pid")
if [ "${now#* }" = "$group $start" ]; then echo running; exit 0; fi
# It may have ended in between.
told_end || echo "gone its process is gone and has left no exit code"
