"""One cleaner for all guests of a host: a draft with a mistake in it.

The series creates a kernel thread for each guest that reboots or ends, all of them at once if need be. Here they wait
in a queue, and one thread works it off. docs/policies.md tells the story.
"""

from collections import deque

from lazypv.policy import Lock, SeriesTeardown, Spawn, Touch, destroy_thread


class OneCleaner(SeriesTeardown):
    def __init__(self):
        self.lock = Lock("cleaner")
        self.queue = deque()
        self.running = False

    async def start_cleaning(self, vm, record):
        async with self.lock.exclusive():
            self.queue.append((vm, record))
            if not self.running:
                self.running = await Spawn("pv_cleaner", self.clean) is not None
            if self.running:
                vm.host.put_off(record.pv)
            else:
                self.queue.pop()
            return self.running

    async def clean(self):
        while True:
            async with self.lock.exclusive():
                if not self.queue:
                    break
                vm, record = self.queue.popleft()
            await destroy_thread(vm, record)
            vm.host.taken_up(record.pv)
        await Touch(self, "running", write=True)
        self.running = False
