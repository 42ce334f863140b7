# What a shell does with pipes; prints the same wherever the bytes go.
cd "$1" || exit 1
yes | head -n 3
seq 300000 | sort -rn | head -n 1
seq 200000 | tail -n 1; echo "${PIPESTATUS[@]}"
yes | head -n 1 > /dev/null; echo "${PIPESTATUS[@]}"
yes | true; echo "${PIPESTATUS[@]}"
false | cat; echo "${PIPESTATUS[@]}"
tar cf - -C /usr/include linux | gzip -1 | gunzip | tar tf - | sort | md5sum
dd if=/dev/zero bs=16k count=4000 2> /dev/null | dd bs=16k 2> /dev/null | md5sum
dd if=/dev/zero bs=1M count=64 2> /dev/null | dd bs=333 count=10 iflag=fullblock 2> /dev/null | wc -c
seq 700000 > random
md5sum < random; cat random | cat | cat /dev/stdin | tee copy | md5sum; cmp random copy
cat random > >(md5sum); wait $!
diff <(seq 1000) <(seq 1001)
paste <(seq 5) <(seq 6 10) | while read -r a b; do echo "$b $a"; done
cat <<END | wc -c
$(seq 9000)
END
cat <<< "$(seq 2000)" | md5sum
text=$(for i in $(seq 200); do echo "$(echo $i | tr 0-9 a-j)"; done); echo "$text" | md5sum
(echo a; echo b > /dev/stdout; echo c >> /dev/fd/1; echo d) | cat
for i in $(seq 300); do echo "$i"; done | while read -r line; do echo "$line" > /dev/stdout; done | md5sum
(for i in $(seq 100); do (echo "line of $i" &); done; wait; sleep 0.2) | sort | md5sum
seq 100 | xargs -P 4 -n 7 echo | tr ' ' '\n' | sort -n | md5sum
coproc tr a-z A-Z; echo hello >&"${COPROC[1]}"; eval "exec ${COPROC[1]}>&-"; cat <&"${COPROC[0]}"; wait
mkfifo named; (seq 10000 > named &); md5sum < named
(sleep 0.1; echo late) | (read -r -t 5 word; echo "$word"); (sleep 0.3) | (read -r -t 0.05 word; echo $(($? > 128)))
(echo first; sleep 0.05; echo second) | while read -r word; do echo "$word"; done
(trap '' PIPE; sleep 0.05; echo x 2> /dev/null; echo "$?" >&2) 2>&1 > >(exec < /dev/null); wait
seq 20 | (read -r one; read -r two; echo "$one $two"; cat) | md5sum
mapfile -t lines < <(seq 500); echo "${#lines[@]}"
printf 'SHELL = /bin/bash\nall: %s\n%%:\n\t@echo $@ | tr 0-9 a-j\n' "$(seq -s ' ' 40)" > Makefile; make -s -j4 | sort | md5sum
seq 50000 | sed -n '$p' | (exec python3 -c 'import sys; print(sys.stdin.read())')
seq 100000 | python3 -c 'import sys; print(sum(map(int, sys.stdin)))'
seq 3 | { exec 5<&0; cat <&5; }
echo done | tee >(cat > one) >(cat > two) > /dev/null; wait; sleep 0.1; cat one two
