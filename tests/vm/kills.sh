# luod's processes killed again and again in the kernel medium, over real kexecs. LUO_BOOT says where we are. One line
# for each thing that must hold. $1: where programs were built, for the tests that have it in them.
. /lib.sh

serves() { for i in $(seq 300); do luoctl status >/dev/null 2>&1 && return 0; sleep 0.1; done; echo "luod does not serve"; tail -40 /share/luod-$LUO_BOOT.log; return 1; }
start_luod() { luod --medium kernel >>/share/luod-$LUO_BOOT.log 2>&1 </dev/null & serves; }
dry_run() { luoctl update kernel --kernel $kernel --initrd $initrd --cmdline "$(line)" --dry-run; }
cross() { # does not come back
  luoctl update kernel --kernel $kernel --initrd $initrd --cmdline "$(line)"
  echo "not ok - kexec from boot $LUO_BOOT"
  tail -40 /share/luod-$LUO_BOOT.log
  exit 90
}
arrives() { # PROCESS KILLS: it is killed so often meanwhile
  luod --medium kernel >>/share/luod-$LUO_BOOT.log 2>&1 </dev/null &
  luo-vm-kills during $1 $2 ${3:-400000} $LUO_BOOT sh /kills.sh serves || return 1
  ! grep "did not come over the kexec" /share/luod-$LUO_BOOT.log
}
arrives_short_of_descriptors() {
  echo 700 >/proc/sys/fs/nr_open
  sh -c "ulimit -n 700; exec luod --medium kernel" >>/share/luod-$LUO_BOOT.log 2>&1 </dev/null &
  for i in $(seq 100); do grep -q "RLIMIT_NOFILE is 700" /share/luod-$LUO_BOOT.log && break; sleep 0.1; done
  grep "RLIMIT_NOFILE is 700" /share/luod-$LUO_BOOT.log || return 1
  luo-vm-kills during luod-worker 3 300000 3 sleep 3
  ! grep "arrived:" /share/luod-$LUO_BOOT.log || return 1
  echo 4194304 >/proc/sys/fs/nr_open
  luo-vm-kills during luod-worker 3 800000 4 sh /kills.sh serves || return 1
  ! grep "did not come over the kexec" /share/luod-$LUO_BOOT.log
}
leaves_with_systemd() { # one that only ends services, kills the worker, and leaves
  mkdir -p /run/systemd/system
  cat >/bin/systemctl <<'END'
#!/bin/sh
[ "$1" = kexec ] || exit 1
(
  pid() { luoctl --json status | tr -d ' \n' | sed "s/.*\"$1_pid\":\([0-9]*\).*/\1/"; }
  kill $(pidof luo-vm-service) $(pid worker) $(pid keeper)
  while pidof luo-vm-service; do sleep 0.1; done
  luo-vm-service keep afterwards 1 100
  luoctl stop
  luoctl list
  before=$(pid worker)
  prlimit --pid $(pid keeper) --fsize=4096:unlimited # a next worker could not store luod's state anew
  kill -9 $before
  while [ "$(pid worker)" = $before ] || ! luoctl status; do sleep 0.1; done
  luoctl list
  sync
  kexec -e
) >/share/shutdown.log 2>&1 </dev/null &
END
  chmod +x /bin/systemctl
  cross
}
calls() { for call in "$@"; do printf '*TheWorkerAtEachSystemCall/%s:' $call; done; }
suite() { # PROGRAM FILTER
  LUO_MEDIUM=kernel $1 --gtest_brief=1 --gtest_filter="$2" || return 1
}
killed_churn() { luo-vm-kills during luod-worker 1000 200000 $1 luo-vm-kills churn $2 $1 $3; }
killed_dry_runs() {
  done=0 cannot="cannot grow"
  for seed in 1 2 3 4 5 6; do
    LUO_SAY= luo-vm-kills during luod-worker 3 400000 $seed sh /kills.sh dry_run >/tmp/dry 2>&1 && done=$((done + 1))
    serves || return 1
    ! grep "$cannot" /tmp/service-growing.log || return 1
  done
  cat /tmp/dry; echo "$done of 6 went through"
}
updates_of_luod() {
  luo-vm-kills churn 1200 9 /share/churn-9 & churn=$!
  for i in 1 2 3; do luoctl update luod --image /bin/luod || return 1; done
  wait $churn
}

case $1 in
serves) serves; exit ;;
dry_run) dry_run; exit ;;
esac

case $LUO_BOOT in
1)
  mkdir -p /share/at "$(dirname $1)"
  ln -s /bin $1
  cp /boot/bzImage /boot/initrd /share/at/ || exit 92
  does "the worker killed at each system call of what gives up, and of a batch" suite luod_kills_test "$(calls unpreserve close_outgoing preserve_many)"
  does "starts" start_luod
  does "what is given up is free and what is kept is kept, however often the worker is killed" killed_churn 1 300 /share/churn-1
  kill $(pidof luo-vm-kills)
  does "keeps many" luo-vm-service keep many 2000 1000
  does "the same while luod is updated, and the old one takes its time to end" updates_of_luod
  does "keeps what is to grow" luo-vm-service keep growing 40 9000 --option grow=allow --grow-after
  does "dry runs with the worker killed: files can grow again" killed_dry_runs
  does "then one goes through" dry_run
  does "and all is as it was" sh -c '! grep "cannot grow" /tmp/service-growing.log'
  cross ;;
2)
  does "arrives, the worker killed" arrives luod-worker 8
  does "what was preserved and given up" luo-vm-kills check /share/churn-9
  does "many" luo-vm-service take many 2000 1000 --renew
  does "what was to grow" luo-vm-service take growing 40 9000 --renew
  cross ;;
3)
  does "arrives, the worker killed, and it may not have as many descriptors as it needs" arrives_short_of_descriptors
  does "many, renewed" luo-vm-service take many 2000 1000 --renew
  does "what was to grow, renewed" luo-vm-service take growing 40 9000
  cross ;;
4)
  does "arrives, the keeper killed" arrives luod-keeper 1
  does "many, after a third kexec" luo-vm-service take many 2000 1000
  does "nothing is left over" sh -c '[ "$(luoctl list | wc -l)" -le 1 ]'
  does "keeps some that end with their owner" luo-vm-service keep owned 30 2000
  does "and what is to grow" luo-vm-service keep growing 10 9000 --option grow=allow
  leaves_with_systemd ;;
5)
  does "arrives after a shutdown that ended all owners and killed the worker" start_luod
  does "what ended with its owner in another shutdown" luo-vm-service take owned 30 2000
  does "what was to grow, after it" luo-vm-service take growing 10 9000
  does "what came while the kernel was left was refused" grep "this kernel is being left" /share/shutdown.log
  does "it stops" luoctl stop
  does "and starts again: nothing comes twice" start_luod
  does "really nothing" sh -c '[ "$(luoctl list | wc -l)" -le 1 ]' ;;
esac
