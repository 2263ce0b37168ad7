# What the bare kernel of the virtual machine answers, over six kexecs. Arguments: none; LUO_BOOT says where we are.
exec 2>&1
mkdir -p /share/at
next() { # everything that must be left behind is: over
  line="$(sed 's/ *luo.boot=[0-9]*//g' /proc/cmdline) luo.boot=$((LUO_BOOT + 1))"
  kexec -s -l /share/at/bzImage --initrd=/share/at/initrd --command-line="$line" || exit 90
  sync
  kexec -e
  exit 91
}
does() { # NAME COMMAND...: one line for each, and its output if it failed
  name=$1
  shift
  if "$@" >/tmp/said 2>&1; then echo "ok - $name"; else echo "not ok - $name"; sed 's/^/#   /' /tmp/said | tail -40; fi
}
case $LUO_BOOT in
1) cp /boot/bzImage /boot/initrd /share/at/ || exit 92
   uname -r | sed 's/^/# Linux /'
   does "selftests: liveupdate (15)" sh -c 'liveupdate >/tmp/tap; status=$?; cat /tmp/tap; [ $status = 0 ] && [ "$(grep -c "^ok" /tmp/tap)" = 15 ]'
   does "conformance" luo-conformance --kernel
   does "conformance, stage 1" luo-conformance --kernel --stage 1
   next ;;
2) does "conformance, stage 2, after a kexec" luo-conformance --kernel --stage 2
   next ;;
3) does "conformance, stage 3, after a second one" luo-conformance --kernel --stage 3 ;;
4) does "selftests: luo_kexec_simple" luo_kexec_simple -s 2 ;;
5) does "selftests: luo_multi_session" luo_multi_session -s 2 ;;
6) does "selftests: luo_stress_sessions" luo_stress_sessions -s 2 ;;
7) does "selftests: luo_stress_files" luo_stress_files -s 2
   exit 0 ;;
esac
case $LUO_BOOT in
3) luo_kexec_simple -s 1 ;;
4) luo_multi_session -s 1 ;;
5) luo_stress_sessions -s 1 ;;
6) luo_stress_files -s 1 ;;
esac >/dev/null || exit 93
next
