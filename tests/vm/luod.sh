# luod with the kernel medium, over three real kexecs. LUO_BOOT says where we are. One line for each thing that must hold.
. /lib.sh

start_luod() {
  luod --medium kernel "$@" >>/share/luod-$LUO_BOOT.log 2>&1 </dev/null &
  for i in $(seq 100); do luoctl status >/dev/null 2>&1 && return 0; sleep 0.1; done
  echo "luod does not serve"; cat /share/luod-$LUO_BOOT.log; return 1
}
update() { luoctl update kernel --kernel $kernel --initrd $initrd --cmdline "$(line)" "$@"; }
systemctl_says() { # STATUS: does nothing, and ends with it
  printf '#!/bin/sh\n[ "$1" = is-system-running ] && echo running\n[ "$1" != kexec ] || exit %s\n' "$1" >/bin/systemctl
  chmod +x /bin/systemctl
}
cross() { # OPTIONS...: does not come back
  luoctl update kernel --kernel $kernel --initrd $initrd --cmdline "$(line)" "$@"
  echo "not ok - kexec from boot $LUO_BOOT"
  cat /share/luod-$LUO_BOOT.log
  exit 90
}
field() { luoctl --json status | tr -d ' \n' | sed -n "s/.*\"$1\":\([^,}]*\).*/\1/p"; }

case $LUO_BOOT in
1)
  mkdir -p /share/at
  cp /boot/bzImage /boot/initrd /share/at/ || exit 92
  does "starts where no kernel left anything" start_luod
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
  update --timeout 20 >/tmp/update 2>&1 &
  updating=$!
  does "systemd has been asked: all is frozen" soon shows "mortal *frozen" luoctl list
  kill "$mortal" "$(field worker_pid)" "$(field keeper_pid)"
  soon sh -c "! readlink /proc/$mortal/exe" >/dev/null
  does "what would change anything is refused, and SIGTERM ignored" says "is being left" luoctl stop
  does "a service that is stopped gives nothing up" shows "mortal *frozen" luoctl list
  kill -9 "$(field worker_pid)"
  does "nor does it by a worker that is killed" soon shows "mortal *frozen" luoctl list
  wait $updating
  does "a shutdown that never comes undoes everything" shows "is not at it" cat /tmp/update
  does "now the end of the service counts" soon sh -c '! luoctl list | grep mortal'
  does "the others have what they had" shows "special *outgoing" luoctl list
  rm -r /run/systemd /bin/systemctl
  does "a worker that is killed loses nothing" sh -c 'kill -9 $(luoctl --json status | tr -d " \n" | sed "s/.*\"worker_pid\":\([0-9]*\).*/\1/") && luoctl list | grep -q special'
  does "a keeper that is killed loses nothing" sh -c 'kill -9 $(luoctl --json status | tr -d " \n" | sed "s/.*\"keeper_pid\":\([0-9]*\).*/\1/") && luoctl list | grep -q special'
  cross ;;
2)
  does "arrives after a kexec" start_luod
  does "the update stands in its history, with a measured blackout" sh -c 'luoctl --json status | tr -d " \n" | grep -q "\"clock\":\"cycles\".*\"ok\":true"'
  luoctl status | sed -n 's/^ *last update */# /p'
  does "files of all kinds of seals, modes, positions" luo-vm-service take special 12 5000 --special
  does "many" luo-vm-service take many 300 4096 --renew
  does "what has grown" luo-vm-service take growing 3 100000 --renew
  does "what an exec only can carry is not there, the rest is" luo-vm-service take sockets 2 100
  does "an empty session" luo-vm-service take empty 0 0
  does "a held one is incoming, and stays" shows "held *incoming" luoctl list
  does "one that is retrieved can be preserved anew" luo-vm-service keep special 12 5000 --special
  does "a second kexec would lose what nobody claimed: it stops" says "drop-unclaimed" luoctl update kernel --kernel $kernel --initrd $initrd --cmdline "$(line)"
  cross --drop-unclaimed ;;
3)
  does "arrives after a second one" start_luod
  does "what was renewed" luo-vm-service take many 300 4096 --renew
  does "what was renewed and had grown" luo-vm-service take growing 3 100000
  does "what was preserved anew" luo-vm-service take special 12 5000 --special
  does "what was held through two" luo-vm-service take held 4 6000 --renew
  does "what nobody claimed is gone" luo-vm-service take unclaimed 2 4096 --absent
  cross ;;
4)
  does "arrives after a third one" start_luod
  does "what was renewed twice" luo-vm-service take many 300 4096
  does "what was held, then renewed" luo-vm-service take held 4 6000
  does "nothing is left over" sh -c '[ "$(luoctl list | wc -l)" -le 1 ]'
  does "it stops" luoctl stop ;;
esac
