import type { Area, Card, CustomerClient, Group, ServerError, State } from "@venta/client";
import type { ReactElement, ReactNode } from "react";

export declare function VentaProvider(props: { client: CustomerClient; children?: ReactNode }): ReactElement;
export declare function useVentaClient(): CustomerClient;
export declare function useConnectionState(): State;

export interface WatchOptions {
  /** Only open vendors. */
  open?: boolean;
  /** Minimum time between two updates, ms. */
  interval?: number;
}

export declare function useVendors(
  area: Area | null,
  options?: WatchOptions,
): { vendors: Card[]; fresh: boolean; error: ServerError | null };
export declare function useVendor(vendorId: string | null): { vendor: Card | null; fresh: boolean; error: ServerError | null };
export declare function useCounts(
  area: Area | null,
  options?: WatchOptions & { detail?: number },
): { groups: Group[]; fresh: boolean; error: ServerError | null };
