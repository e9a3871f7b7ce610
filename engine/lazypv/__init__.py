"""An executable model of IBM Z protected guests on Linux/KVM and of the lazy destruction of their memory."""
