"""Virtual IOMMUs: slices of an IOMMU for a VM, with their devices, events and hardware queues."""
