# bash completion for luoctl(1)

_luoctl_sessions() {
  # "name": "..." of luoctl --json list; a luod that is not there completes nothing.
  "${COMP_WORDS[0]}" --json "$@" list 2>/dev/null | sed -n 's/^ *"name": "\(.*\)",\{0,1\}$/\1/p'
}

_luoctl() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
  local -a words=() socket=()
  local i
  COMPREPLY=()

  for ((i = 1; i < COMP_CWORD; i++)); do
    case ${COMP_WORDS[i]} in
      --)
        # After "--" comes a command line of its own.
        if declare -F _command_offset >/dev/null; then
          _command_offset $((i + 1))
        elif ((COMP_CWORD == i + 1)); then
          COMPREPLY=($(compgen -c -- "$cur"))
        else
          COMPREPLY=($(compgen -f -- "$cur"))
        fi
        return ;;
      --socket) socket=(--socket "${COMP_WORDS[++i]}") ;;
      --private) socket=(--socket "${COMP_WORDS[++i]}/luod.sock") ;;  # not to start one
      --private=*) socket=(--socket "${COMP_WORDS[i]#*=}/luod.sock") ;;
      --handlers) ((++i)) ;;
      --image | --timeout | --log | --handler | --kernel | --initrd | --cmdline) ((++i)) ;;
      -*) ;;
      *) words+=("${COMP_WORDS[i]}") ;;
    esac
  done

  case $prev in
    --socket | --image | --log | --private | --kernel | --initrd)
      COMPREPLY=($(compgen -f -- "$cur"))
      return ;;
    --timeout | --cmdline) return ;;
  esac

  local IFS=$'\n'
  case "${words[*]:0:2}" in
    '') COMPREPLY=($(compgen -W $'status\nlist\nshow\nfiles\ndrop\nupdate\ninspect\nrun\nstop\n--socket\n--private\n--json\n--help\n--version' -- "$cur")) ;;
    show | drop) COMPREPLY=($(compgen -W "$(_luoctl_sessions "${socket[@]}")"$'\n--json\n--help' -- "$cur")) ;;
    inspect)
      COMPREPLY=($(compgen -W $'--live\n--kho\n--all\n--dts\n--json\n--help' -- "$cur"))
      [[ $cur == -* ]] || COMPREPLY+=($(compgen -f -- "$cur")) ;;
    files) COMPREPLY=($(compgen -W $'--handler\n--json\n--help' -- "$cur")) ;;
    run) COMPREPLY=($(compgen -W $'--\n--help' -- "$cur")) ;;
    update) COMPREPLY=($(compgen -W $'luod\nservice\nkernel\nsimulated\n--help' -- "$cur")) ;;
    $'update\nluod') COMPREPLY=($(compgen -W $'--image\n--timeout\n--json\n--help' -- "$cur")) ;;
    $'update\nservice')
      if ((${#words[@]} == 2)); then
        COMPREPLY=($(compgen -W "$(_luoctl_sessions "${socket[@]}")"$'\n--timeout\n--log\n--json\n--help' -- "$cur"))
      else
        COMPREPLY=($(compgen -W $'--\n--timeout\n--log\n--json' -- "$cur"))
      fi ;;
    $'update\nkernel')
      COMPREPLY=($(compgen -W $'--kernel\n--initrd\n--cmdline\n--reuse-cmdline\n--dry-run\n--drop-unclaimed\n--timeout\n--json\n--help' -- "$cur")) ;;
    $'update\nsimulated') COMPREPLY=($(compgen -W $'--timeout\n--json\n--help' -- "$cur")) ;;
    *) COMPREPLY=($(compgen -W $'--json\n--socket\n--help' -- "$cur")) ;;
  esac
}

complete -F _luoctl luoctl
