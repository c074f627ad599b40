"""The engines that run steps: in this process, in processes of this machine, or in containers of their own."""
