"""A plan as routers take it: the workers of each model, with their terms, and the model's queue.

The server and the simulator both serve a plan by what stands here, so that what is simulated is what is served.
"""

from dataclasses import dataclass, replace

from efserve.errors import ConfigError
from efserve.model_config import DynamicBatching, ModelConfig
from efserve.planning.plan import Plan, Tenant
from efserve.routing import Router
from efserve.turns import Terms, Turns


@dataclass(frozen=True, slots=True)
class PlannedWorker:
    """One process of a model on a partition, which is the `placement`-th of the plan."""

    placement: int
    facts: Tenant
    terms: Terms


def planned_workers(plan: Plan) -> dict[str, list[PlannedWorker]]:
    """The workers of each model that is planned, in the order of the placements.

    Raises ConfigError where demands and placements do not name the same models.
    """
    placed = {tenant.model for placement in plan.placements for tenant in placement.tenants}
    if strange := sorted(placed ^ {demand.model for demand in plan.demands}):
        which = "no placement" if strange[0] not in placed else "no demand"
        raise ConfigError(f"the plan has {which} for {strange[0]!r}; `efserve plan --check` tells what else is wrong")
    workers: dict[str, list[PlannedWorker]] = {demand.model: [] for demand in plan.demands}
    for at, placement in enumerate(plan.placements):
        turns = Turns() if len(placement.tenants) > 1 else None
        for tenant in placement.tenants:
            workers[tenant.model] += [PlannedWorker(at, tenant, _terms(tenant, turns))] * tenant.processes
    return workers


def _terms(tenant: Tenant, turns: Turns | None) -> Terms:
    return Terms(
        rows=tenant.batch,
        capacity_per_s=tenant.capacity_per_s / tenant.processes,
        batch_ns=int(tenant.latency_ms * 1e6),
        row_ns=int((tenant.row_ms or tenant.latency_ms) * 1e6),
        turns=turns,
    )


def planned_config(config: ModelConfig, rows: int) -> ModelConfig:
    """The model's config for its planned workers, of which the largest batch has `rows`.

    No request waits for a batch to fill: a worker that may begin takes what is there, and what comes meanwhile gathers.
    """
    batching = replace(config.dynamic_batching or DynamicBatching(), max_queue_delay_us=0, preferred_batch_sizes=())
    return replace(config, max_batch_size=rows if config.batches else 0, dynamic_batching=batching)


def planned_router(config: ModelConfig, slo_ms: float, late: str) -> Router:
    """The router of a planned model; `late`: "drop" what cannot keep the SLO any more, or "serve" it all the same."""
    return Router(config, slo_ns=int(slo_ms * 1e6) if late == "drop" else 0)
