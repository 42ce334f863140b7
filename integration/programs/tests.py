# Runs CPython's own tests, and says what became of each.
import subprocess
import sys
import xml.etree.ElementTree

command = [sys.executable, "-m", "test", "-u", "network", "--junit-xml=results.xml", *sys.argv[1:]]
ended = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
print("status", ended.returncode)
verdicts = []
for case in xml.etree.ElementTree.parse("results.xml").getroot().iter("testcase"):
    what = [part.tag for part in case if part.tag in ("failure", "error", "skipped")]
    verdicts.append(f"{case.get('name')}: {what[0] if what else 'ok'}")
print("\n".join(sorted(verdicts)))
if ended.returncode:
    sys.stderr.buffer.write(ended.stdout[-20000:])
