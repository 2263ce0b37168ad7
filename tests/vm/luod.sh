# luod with the kernel medium, over three real kexecs. LUO_BOOT says where we are. One line for each thing that must hold.
. /lib.sh
[ ! -e /share/boot ] || LUO_BOOT=$(cat /share/boot) # with the command line of the kernel before

start_luod() { # MEDIUM
  luod --medium "$1" --handlers /ledger.so,all >>/share/luod-$LUO_BOOT.log 2>&1 </dev/null &
  for i in $(seq 100); do luoctl status >/dev/null 2>&1 && chmod 666 $LUO_SOCKET && return 0; sleep 0.1; done
  echo "luod does not serve"; cat /share/luod-$LUO_BOOT.log; return 1
}
update() { luoctl update kernel --kernel $kernel --initrd $initrd --cmdline "$(line)" "$@"; }
systemctl_says() { # STATUS: does nothing, and ends with it; what it says of the system is in /tmp/system
  printf '#!/bin/sh\necho "$1" >>/tmp/asked\n[ "$1" = is-system-running ] && cat /tmp/system\n[ "$1" != kexec ] || exit %s\n' "$1" >/bin/systemctl
  chmod +x /bin/systemctl
}
cross() { # OPTIONS...: does not come back
  case "$*" in
  *--reuse-cmdline*) luoctl update kernel --kernel $kernel --initrd $initrd "$@" ;;
  *) update "$@" ;;
  esac
  echo "not ok - kexec from boot $LUO_BOOT"
  cat /share/luod-$LUO_BOOT.log
  exit 90
}
asked() { # TIMES: luod has asked systemd whether it is at it
  [ "$(grep -c is-system-running /tmp/asked)" -ge $1 ]
}
in_unit() { # NAME COMMAND...
  mkdir -p /sys/fs/cgroup/$1
  sh -c 'echo $$ >"/sys/fs/cgroup/$0/cgroup.procs" && exec "$@"' "$@"
}
serial() { # SESSION NUMBER: of the volume that its ledger belongs to
  luoctl --json files --handler ledger-v1 >/tmp/files
  cat /tmp/files
  tr -d ' \n' </tmp/files | grep -o '{[^}]*}' | grep "\"session\":\"$1\"" | grep -q "\"data\":\[[0-9]*,$2,"
}
volume() { # SIDE true|false FILES
  luoctl --json status | tr -d ' \n' | grep -o '"flbs":\[[^]]*\]' >/tmp/flbs
  cat /tmp/flbs
  grep -q "\"$1\":$2.*\"$1_files\":$3[,}]" /tmp/flbs
}
option() { # SESSION OPTION
  luoctl --json show $1 | tr -d ' ' | grep "\"$2\":\"allow\""
}
names_are_hashed() { # in descriptors of any process, in what is handed over, in what the kernel says
  ls -l /proc/[0-9]*/fd 2>/dev/null | sed -n 's/.*anon_inode:\[luo_session\] //p' | sort -u >/tmp/kernel-names
  [ "$(wc -l </tmp/kernel-names)" -ge 5 ] || { echo "only:"; cat /tmp/kernel-names; return 1; }
  ! grep -vE '^luo-[0-9a-f]{16}-[0-9]+$' /tmp/kernel-names || return 1
  ! grep -rE 'special|growing|unclaimed' /sys/kernel/debug/kho || return 1
  ! dmesg | grep -E 'special|growing|unclaimed'
}
free_kb() { sed -n 's/^MemFree: *\([0-9]*\).*/\1/p' /proc/meminfo; }
gave_back() { # KIB BEFORE: at least so much more is free
  sync
  echo 3 >/proc/sys/vm/drop_caches
  after=$(free_kb)
  echo "free: $2 KiB before, $after after"
  [ $((after - $2)) -ge $1 ]
}
field() { luoctl --json status | tr -d ' \n' | sed -n "s/.*\"$1\":\([^,}]*\).*/\1/p"; }

case $LUO_BOOT in
1)
  mkdir -p /share/at
  cp /boot/bzImage /boot/initrd /share/at/ || exit 92
  does "starts where no kernel left anything" start_luod kernel
  does "a second luod is told who has the device" says "luod-keeper (pid" luod --medium kernel --state-dir /tmp/second
  does "another one does without" sh -c 'luod --medium exec --state-dir /tmp/third --socket /tmp/third.sock & for i in $(seq 50); do luoctl --socket /tmp/third.sock status && break; sleep 0.1; done; luoctl --socket /tmp/third.sock stop'
  does "keeps files of all kinds of seals, modes, positions" luo-vm-service keep special 12 5000 --special --unpreserve
  does "keeps many" luo-vm-service keep many 300 4096
  does "keeps what is to grow until an update" luo-vm-service keep growing 3 100000 --option grow=allow --grow-after
  does "refuses what only an exec can carry, and says so" says "transient=allow" luo-vm-service keep sockets 2 100 --socket
  does "takes it if the session allows that" luo-vm-service keep sockets 2 100 --socket --option transient=allow
  does "keeps an empty session" luo-vm-service keep empty 0 0
  does "keeps a held one" luo-vm-service keep held 4 6000 --hold
  does "keeps one that nobody will claim" luo-vm-service keep unclaimed 2 4096
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  does "keeps one held for its user" luo-vm-service keep users 2 3000 --as 1000 --hold
  does "one held for its executable" luo-vm-service keep tools 1 3000 --as 1000 --hold-executable
  does "one held for its unit" in_unit a luo-vm-service keep units 1 3000 --as 1000 --hold-unit
  does "keeps ledgers, of a handler of its own" luo-vm-service keep ledger 2 3000 --memfd ledger
  does "they have a volume, the first one" serial ledger 1
  does "which is there once" volume outgoing true 2
  does "no real name is where others can see it" names_are_hashed
  does "a dry run changes nothing" shows "dry run\|rehearsed" luoctl update kernel --kernel $kernel --initrd $initrd --cmdline "$(line)" --dry-run
  does "files can grow again after it" sh -c 'grep -q resumed /tmp/service-growing.log && ! grep "cannot grow" /tmp/service-growing.log'
  does "update luod, in the kernel medium" luoctl update luod --image /bin/luod
  does "and all is still there" shows "special" luoctl list
  luo-vm-service keep refuser 1 100 --refuse
  does "an owner that refuses stops it" says "the test says no" luoctl update kernel --kernel $kernel --initrd $initrd --cmdline "$(line)"
  kill $(luoctl list | awk '$1 == "refuser" { print $4 }')
  does "its session is gone with it" sh -c 'for i in $(seq 50); do luoctl list | grep -q refuser || exit 0; sleep 0.1; done; exit 1'
  luo-vm-service keep saboteur 1 100 --on-prepare "kexec -s -u"
  does "a kernel that refuses at the last moment undoes everything" says "no kernel is loaded" luoctl update kernel --kernel $kernel --initrd $initrd --cmdline "$(line)"
  does "and files can grow again" sh -c 'for i in $(seq 50); do [ "$(grep -c resumed /tmp/service-growing.log)" = 3 ] && break; sleep 0.1; done; grep -c resumed /tmp/service-growing.log; [ "$(grep -c resumed /tmp/service-growing.log)" = 3 ] && ! grep "cannot grow" /tmp/service-growing.log'
  kill $(luoctl list | awk '$1 == "saboteur" { print $4 }')
  mkdir -p /run/systemd/system # as under systemd; systemd.py has the real one
  systemctl_says 3
  does "under systemd: a systemctl that fails undoes everything" says "systemctl kexec" update
  does "nothing is frozen after it" sh -c '! luoctl list | grep frozen'
  systemctl_says 0
  luo-vm-service keep mortal 2 5000
  mortal=$(luoctl list | awk '$1 == "mortal" { print $4 }')
  rm -f /tmp/asked
  update --timeout 3 >/tmp/update 2>&1 &
  updating=$!
  does "systemd has been asked: all is frozen" soon shows "mortal *frozen" luoctl list
  keeper=$(field keeper_pid)
  does "luod's own kernel session has the reserved name" shows "luod$" leaving_image $keeper
  kill "$mortal" "$(field worker_pid)" $keeper
  soon sh -c "! readlink /proc/$mortal/exe" >/dev/null
  does "what would change anything is refused, and SIGTERM ignored" says "is being left" luoctl stop
  does "a service that is stopped gives nothing up" shows "mortal *frozen" luoctl list
  does "nor if systemd cannot say whether it is at it when the time is over" soon asked 1
  echo stopping >/tmp/system
  prlimit --pid $keeper --fsize=4096:unlimited # a next worker could not store luod's state anew
  kill -9 "$(field worker_pid)"
  does "nor if the worker is killed" soon shows "mortal *frozen" luoctl list
  does "luod's state is with the kernel as before" shows "luod$" leaving_image $keeper
  prlimit --pid $keeper --fsize=unlimited
  does "while systemd is at it" soon asked 2
  does "nothing is given up" shows "mortal *frozen" luoctl list
  does "and nothing is missing" shows "luod$" leaving_image $keeper
  echo running >/tmp/system
  wait $updating
  does "a shutdown that never comes undoes everything" shows "is not at it" cat /tmp/update
  does "luod's state is the kernel's no more" not leaving_image $keeper
  does "now the end of the service counts" soon sh -c '! luoctl list | grep mortal'
  does "the others have what they had" shows "special *outgoing" luoctl list
  rm -r /run/systemd /bin/systemctl
  does "a worker that is killed loses nothing" sh -c 'kill -9 $(luoctl --json status | tr -d " \n" | sed "s/.*\"worker_pid\":\([0-9]*\).*/\1/") && luoctl list | grep -q special'
  does "a keeper that is killed loses nothing" sh -c 'kill -9 $(luoctl --json status | tr -d " \n" | sed "s/.*\"keeper_pid\":\([0-9]*\).*/\1/") && luoctl list | grep -q special'
  cross ;;
2)
  does "arrives after a kexec" start_luod kernel
  does "the update stands in its history, with a measured blackout" sh -c 'luoctl --json status | tr -d " \n" | grep -q "\"clock\":\"cycles\".*\"ok\":true"'
  luoctl status | sed -n 's/^ *last update */# /p'
  does "the option of what is to grow" option growing grow
  does "that of what may be lost" option sockets transient
  does "files of all kinds of seals, modes, positions" luo-vm-service take special 12 5000 --special
  does "many" luo-vm-service take many 300 4096 --renew
  does "what has grown" luo-vm-service take growing 3 100000 --renew
  does "what an exec only can carry is not there, the rest is" luo-vm-service take sockets 2 100
  does "an empty session" luo-vm-service take empty 0 0
  does "a held one is incoming, and stays" shows "held *incoming" luoctl list
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  does "what is held for a user, another one does not get" says "held for uid 1000.*uid 1001 asks" luo-vm-service take users 2 3000 --as 1001
  does "that user does" luo-vm-service take users 2 3000 --as 1000
  cp /bin/luo-vm-service /tmp/other
  does "what is held for an executable, another one does not get" says "held for the executable /bin/luo-vm-service.*/tmp/other asks" /tmp/other take tools 1 3000 --as 1000
  does "that one does" luo-vm-service take tools 1 3000 --as 1000
  does "what is held for a unit, another one does not get" says "held for the unit /a.*/b asks" in_unit b luo-vm-service take units 1 3000 --as 1000
  does "that one does" in_unit a luo-vm-service take units 1 3000 --as 1000
  does "what files shared has come with them" volume incoming true 2
  does "with its data" serial ledger 1
  does "and is gone on with" luo-vm-service keep ledger2 1 3000 --memfd ledger
  does "under the next number" serial ledger2 2
  does "the files themselves, which it stays with until the last" luo-vm-service take ledger 2 3000
  does "then what came in has ended" volume incoming false 0
  does "one that is retrieved can be preserved anew" luo-vm-service keep special 12 5000 --special
  does "a second kexec would lose what nobody claimed: it stops" says "drop-unclaimed" luoctl update kernel --kernel $kernel --initrd $initrd --cmdline "$(line)"
  cross --drop-unclaimed ;;
3)
  does "arrives after a second one" start_luod kernel
  does "what files shared came a second time" serial ledger2 2
  does "both updates stand in the history" sh -c '[ "$(luoctl --json status | tr -d " \n" | sed "s/.*\"history\"://" | grep -o "\"kind\":\"kernel\"" | wc -l)" -ge 2 ]'
  does "its files" luo-vm-service take ledger2 1 3000
  does "what was renewed" luo-vm-service take many 300 4096 --renew
  does "what was renewed and had grown" luo-vm-service take growing 3 100000
  does "what was preserved anew" luo-vm-service take special 12 5000 --special
  does "what was held through two" luo-vm-service take held 4 6000 --renew
  does "what nobody claimed is gone" luo-vm-service take unclaimed 2 4096 --absent
  does "keeps what nobody will claim after a simulated update" luo-vm-service keep waste 1 33554432
  does "a simulated update, of what the kernel has" luoctl update simulated
  does "what was renewed, after that" luo-vm-service take many 300 4096 --renew
  does "what was held, after that" luo-vm-service take held 4 6000 --renew
  echo 4 >/share/boot
  cp /proc/cmdline /share/cmdline
  cross --reuse-cmdline --drop-unclaimed ;;
4)
  before=$(free_kb)
  does "the command line is the one of the kernel before" cmp /proc/cmdline /share/cmdline
  does "arrives after a third one" start_luod auto
  does "the medium is the kernel, if luod chooses" shows '"medium":"kernel"' sh -c 'luoctl --json status | tr -d " "'
  does "what was renewed twice" luo-vm-service take many 300 4096
  does "what was held, then renewed" luo-vm-service take held 4 6000
  does "nothing is left over" sh -c '[ "$(luoctl list | wc -l)" -le 1 ]'
  does "it stops" luoctl stop
  does "what nobody claimed takes no memory any more" soon gave_back 20000 $before ;;
esac
